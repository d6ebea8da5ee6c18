"""Small data sets in the formats of public ones, made of this repository's own pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from pycocotools import mask

SUBJECTS = sorted((Path(__file__).parent / "subjects").rglob("*.png"))
SCORES = ("compositeStructure", "objectConsistency", "imageQuality")
PADDING = 16

# The types of the Hub's files.
SCHEMA = pyarrow.schema(
    {
        "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        "collection": pyarrow.string(),
        "quality_assessment": pyarrow.struct(dict.fromkeys(SCORES, pyarrow.int64())),
        "description": pyarrow.struct(
            {
                **dict.fromkeys(("item", "description_0", "description_1", "category"), pyarrow.string()),
                "description_valid": pyarrow.bool_(),
            }
        ),
    }
)

PLACES = ((90, 140, 70), (70, 90, 150), (200, 170, 90), (150, 80, 80))
"""Colours of backgrounds: grass, sea, sand, brick."""


def scene(subject: int, place: int, size: tuple[int, int] = (64, 64), at: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of a subject, 32 pixels wide, in a place."""
    image = Image.new("RGB", size, PLACES[place % len(PLACES)])
    with Image.open(SUBJECTS[subject % len(SUBJECTS)]) as file:
        cut_out = file.convert("RGBA").resize((32, 32))
    image.paste(cut_out, at, cut_out)
    return image


def pair(number: int, side: int = 64) -> Image.Image:
    """A subject in two places, side by side, each picture with half the padding on each side."""
    tile = side + PADDING
    image = Image.new("RGB", (2 * tile, tile), "magenta")
    for half in (0, 1):
        picture = scene(number, number + half).resize((side, side))
        image.paste(picture, (half * tile + PADDING // 2, PADDING // 2))
    return image


def encode(image: Image.Image, file_format: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, file_format)
    return content.getvalue()


def subject_row(number: int, **fields: Any) -> dict[str, Any]:
    """A row of Subjects200K. `fields`: other values of its columns."""
    description = {
        "item": f"thing {number}",
        "description_0": f"thing {number} on the left",
        "description_1": f"thing {number} on the right",
        "category": "toy",
        "description_valid": True,
    }
    if "image" not in fields:
        fields["image"] = {"bytes": encode(pair(number)), "path": f"{number}.png"}
    scores = dict.fromkeys(SCORES, 5)
    return {"collection": "collection_2", "quality_assessment": scores, "description": description, **fields}


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], schema: pyarrow.Schema | None = SCHEMA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(list(rows), schema=schema)
    pyarrow.parquet.write_table(table, path, row_group_size=50)
    return path


class CocoFiles:
    """A data set in COCO's format: pictures of 96×64 pixels with an object of 32×32 pixels in each.

    `annotations` and `captions` can be changed before `write`.
    """

    def __init__(self, folder: Path, pictures: int) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.captions: list[dict[str, Any]] = []
        (folder / "images").mkdir(parents=True)
        for number in range(pictures):
            left, top = 16 + number % 40, 8 + number % 20
            name = f"{number:012}.png"
            scene(number, number, (96, 64), (left, top)).save(folder / "images" / name)
            self.images.append({"id": number, "file_name": name, "width": 96, "height": 64})
            self.annotations.append(
                {
                    "id": 1000 + number,
                    "image_id": number,
                    "category_id": 1 + number % 2,
                    "iscrowd": 0,
                    "segmentation": segmentation(number, left, top),
                }
            )
            self.captions += [
                {"id": 2 * number, "image_id": number, "caption": f"something in place {number}"},
                {"id": 2 * number + 1, "image_id": number, "caption": f"A toy animal in place {number}"},
            ]

    def write(self) -> dict[str, Path]:
        """Write the files. Returns the paths that Coco takes."""
        categories = [{"id": 1, "name": "toy_animal"}, {"id": 2, "name": "ornament"}]
        files = {
            "instances": {"info": {}, "images": self.images, "annotations": self.annotations, "categories": categories},
            "captions": {"info": {}, "images": self.images, "annotations": self.captions},
        }
        for name, content in files.items():
            (self.folder / f"{name}.json").write_text(json.dumps(content))
        return {name: self.folder / f"{name}.json" for name in files} | {"images": self.folder / "images"}


def segmentation(number: int, left: int, top: int) -> Any:
    """The mask of a scene's subject, in one of COCO's three forms: a polygon around it, or its pixels in runs."""
    if number % 3 == 0:
        return square_polygon(left, top, 32)
    silhouette = np.zeros((64, 96), np.uint8)
    with Image.open(SUBJECTS[number % len(SUBJECTS)]) as file:
        cut_out = file.convert("RGBA").resize((32, 32))
    silhouette[top : top + 32, left : left + 32] = np.array(cut_out)[..., 3] > 127
    if number % 3 == 1:
        return plain_runs(silhouette)
    compressed = mask.encode(np.asfortranarray(silhouette))
    return compressed | {"counts": compressed["counts"].decode()}


def plain_runs(silhouette: np.ndarray) -> dict[str, Any]:
    """RLE that isn't compressed: lengths of runs, column by column, the first of which is of 0."""
    pixels = silhouette.flatten("F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], pixels]))).tolist()
    counts = np.diff([0, *changes, len(pixels)]).tolist()
    return {"size": list(silhouette.shape), "counts": counts}


def square_polygon(left: int, top: int, side: int) -> list[list[float]]:
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]
