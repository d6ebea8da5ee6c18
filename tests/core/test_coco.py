"""Data sets in COCO's format: objects become triplets, and objects that can't be used are named and counted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dreamcache.dreamcache_core.datasets.coco import Choice, Coco
from dreamcache.dreamcache_core.datasets.preparation import MadeRow, make_rows, prepare
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.training.triplets import open_triplets
from PIL import Image
from pycocotools import mask
from support.public_data import CocoFiles, plain_runs, scene, square_polygon

CHOICE = Choice(smallest=0.05)


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path / "coco", pictures=3)


def made(files: CocoFiles, choice: Choice = CHOICE, **changed: Any) -> list[MadeRow]:
    return list(make_rows(Coco(choice=choice, **(files.write() | changed)).rows(0), threads=2))


def captions(rows: list[MadeRow]) -> list[str]:
    return [triplet["caption.txt"].decode() for row in rows for triplet in row.triplets]


def test_the_objects_of_200_pictures_are_triplets_with_their_masks_and_captions(tmp_path: Path) -> None:
    files = CocoFiles(tmp_path / "coco", pictures=200)
    report = prepare(Coco(choice=CHOICE, **files.write()), tmp_path / "triplets", threads=2)
    assert (report.rows, report.triplets, report.left_out.total()) == (200, 200, 0)

    triplets = open_triplets(tmp_path / "triplets").check()
    assert triplets.problems == ()
    for index in (0, 1, 2, 39, 120, 199):
        triplet = triplets.load(index, 64, seed=0, epoch=1)
        assert triplets.names[index] == f"00000/{index:08}_0"
        # The object in the middle of the square, as far as the picture goes.
        left = min(max(index % 40, 0), 32)
        whole = to_tensor(scene(index, index, (96, 64), (16 + index % 40, 8 + index % 20)))
        assert (triplet.target - whole[:, left : left + 64]).abs().mean() < 0.02
        assert triplet.prompt == (f"A toy animal in place {index}" if index % 2 == 0 else f"something in place {index}")
        assert triplet.augmented


def test_a_mask_is_the_silhouette_in_each_of_its_three_forms(files: CocoFiles) -> None:
    silhouette = np.zeros((64, 96), np.uint8)
    silhouette[10:40, 20:61] = 1
    silhouette[20:30, 30:40] = 0
    compressed = mask.encode(np.asfortranarray(silhouette))
    files.annotations[0]["segmentation"] = plain_runs(silhouette)
    files.annotations[1]["segmentation"] = compressed | {"counts": compressed["counts"].decode()}
    files.annotations[2]["segmentation"] = [[20, 10, 61, 10, 61, 40, 20, 40]]
    filled = silhouette.copy()
    filled[20:30, 30:40] = 1
    for row, expected in zip(made(files), (silhouette, silhouette, filled), strict=True):
        written = np.array(Image.open(io.BytesIO(row.triplets[0]["mask.png"])))
        assert np.array_equal(written, 255 * expected[:, 8:72])


Annotation = dict[str, Any]


def change(**fields: Any) -> Callable[[CocoFiles], None]:
    return lambda files: files.annotations[1].update(fields)


def polygon(left: float, top: float, right: float, bottom: float) -> Callable[[CocoFiles], None]:
    return change(segmentation=[[left, top, right, top, right, bottom, left, bottom]])


def drop(field: str) -> Callable[[CocoFiles], None]:
    return lambda files: files.annotations[1].pop(field)


def runs(counts: Any, size: Any = (64, 96)) -> Callable[[CocoFiles], None]:
    return change(segmentation={"size": list(size), "counts": counts})


def compressed(height: int, width: int) -> str:
    return mask.encode(np.asfortranarray(np.ones((height, width), np.uint8)))["counts"].decode()


def picture(content: bytes | None) -> Callable[[CocoFiles], None]:
    def write(files: CocoFiles) -> None:
        path = files.folder / "images" / files.images[1]["file_name"]
        path.unlink() if content is None else path.write_bytes(content)

    return write


def larger_picture(files: CocoFiles) -> None:
    scene(1, 1, (98, 64)).save(files.folder / "images" / files.images[1]["file_name"])


def unlist_size(files: CocoFiles) -> None:
    files.images[1]["width"] = "96"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change(iscrowd=1), "it is a crowd"),
        (polygon(20, 20, 28, 28), "it is too small (0.016 of the square)"),
        (polygon(5, 5, 90, 60), "it is too large (1.141 of the square)"),
        (polygon(0, 10, 30, 40), "it is cut by the border"),
        (polygon(20, 10, 50, 64), "it is cut by the border"),
        (polygon(10, 20, 80, 30), "it does not fit into a square of its picture"),
        (change(category_id=7), "its category is not listed"),
        (change(category_id=[1]), "its category is not listed"),
        (drop("category_id"), "its category is not listed"),
        (drop("segmentation"), "it has no mask"),
        (change(segmentation=[]), "it has no mask"),
        (change(segmentation=[[1, 2, 3, 4]]), "its mask is damaged (a polygon lacks points)"),
        (change(segmentation=[[1, 2, 3, "4", 5, 6]]), "its mask is damaged (a polygon has points that are no numbers)"),
        (
            change(segmentation=[[1, 2, 3, float("nan"), 5, 6]]),
            "its mask is damaged (a polygon has points that are no n",
        ),
        (polygon(10, 10, 1e9, 40), "its mask has another size than its picture (a polygon lies outside)"),
        (runs([0, 96 * 64], (96, 64)), "its mask has another size than its picture ([96, 64] instead of [64, 96])"),
        (runs([0, 10]), "its mask is damaged (its runs cover 10 of 6144 pixels)"),
        (runs([0, 6145]), "its mask is damaged (its runs cover 6145 of 6144 pixels)"),
        (runs([-1, 6145]), "its mask is damaged (its runs are no whole numbers)"),
        (runs(compressed(4, 4)), "its mask is damaged (its runs cover 16 of 6144 pixels)"),
        (runs(compressed(640, 960)), "its mask is damaged (its runs cover 614400 of 6144 pixels)"),
        (runs("~~"), "its mask is damaged (its runs are no compressed RLE)"),
        (runs(None), "its mask is damaged (its runs are no whole numbers)"),
        (change(image_id=99), "its picture is not listed"),
        (change(image_id=None), "its picture is not listed"),
        (unlist_size, "its picture is listed without a size"),
        (picture(None), "its picture is missing"),
        (picture(b"no picture"), "its picture cannot be decoded"),
        (larger_picture, "its picture has another size than listed (98×64 instead of 96×64)"),
    ],
)
def test_an_object_that_cannot_be_used_is_named_with_its_reason(
    files: CocoFiles, damage: Callable[[CocoFiles], None], reason: str
) -> None:
    damage(files)
    rows = made(files)
    assert captions(rows) == ["A toy animal in place 0", "A toy animal in place 2"]
    (said,) = (str(each) for row in rows for each in row.left_out if each.name.startswith("annotation"))
    assert said.startswith(f"annotation 1001 of image {files.annotations[1].get('image_id')}: {reason}")


def test_pictures_without_objects_or_captions_are_named(files: CocoFiles) -> None:
    del files.annotations[0]
    files.captions = [each for each in files.captions if each["image_id"] != 1]
    said = [str(each) for row in made(files) for each in row.left_out]
    assert said == ["image 0: it has no objects", "annotation 1001 of image 1: its picture has no caption"]


def test_the_largest_objects_of_a_picture_are_taken(files: CocoFiles) -> None:
    sides = {2001: 20, 2002: 30, 2003: 25}
    files.annotations[0:1] = [
        files.annotations[0] | {"id": each, "segmentation": square_polygon(10, 10, side)}
        for each, side in sides.items()
    ]
    first = made(files)[0]
    assert [len(first.triplets), *[each.name for each in first.left_out]] == [
        1,
        "annotation 2003 of image 0",
        "annotation 2001 of image 0",
    ]
    assert all(each.reason == "its picture has larger objects" for each in first.left_out)
    two = made(files, Choice(smallest=0.05, objects=2))[0]
    areas = [int(np.array(Image.open(io.BytesIO(each["mask.png"]))).sum()) for each in two.triplets]
    assert areas == sorted(areas, reverse=True)
    assert len(areas) == 2


def test_without_captions_prompts_name_the_category(files: CocoFiles) -> None:
    assert captions(made(files, captions=None)) == [
        "a photo of a toy animal",
        "a photo of an ornament",
        "a photo of a toy animal",
    ]


def test_pictures_are_found_by_the_address_that_lvis_has(files: CocoFiles) -> None:
    folder = files.folder / "images" / "val2017"
    folder.mkdir()
    for image in files.images:
        name = image.pop("file_name")
        (folder.parent / name).rename(folder / name)
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{name}"
    assert len(captions(made(files))) == 3


@pytest.mark.parametrize("broken", [7, None, "a text", {}, {"id": "\ud800"}, {"image_id": 2**70}, {"image_id": [1]}])
def test_records_that_are_something_else_are_left_out(files: CocoFiles, broken: Any) -> None:
    files.images.append(broken)
    files.annotations.append(broken)
    files.captions.append(broken)
    rows = made(files)
    assert len(captions(rows)) == 3
    (said,) = (str(each) for row in rows for each in row.left_out if each.name.startswith("annotation"))
    assert said.endswith("of image None: its picture is not listed")


@pytest.mark.parametrize("content", ["", "[]", '{"images": [{"id": 1}', '{"images": [{"id": 1},,', "no JSON"])
def test_a_damaged_file_is_named(files: CocoFiles, content: str) -> None:
    paths = files.write()
    paths["instances"].write_text(content)
    with pytest.raises(DreamCacheError, match=r"instances.json cannot be read: it is damaged or not JSON"):
        Coco(choice=CHOICE, **paths)
    paths["instances"].unlink()
    with pytest.raises(DreamCacheError, match=r"instances.json cannot be read: No such file"):
        Coco(choice=CHOICE, **paths)


def test_a_file_of_something_else_is_refused(files: CocoFiles) -> None:
    paths = files.write()
    paths["instances"].write_text(json.dumps({"licenses": [{"id": 1}], "info": {"images": [{"id": 1}]}}))
    with pytest.raises(DreamCacheError, match=r"instances.json lists no images: choose a file of instances"):
        Coco(choice=CHOICE, **paths)
    with pytest.raises(DreamCacheError, match=r"nowhere is not a folder: choose the one that holds the pictures"):
        Coco(choice=CHOICE, **(paths | {"images": files.folder / "nowhere"}))
