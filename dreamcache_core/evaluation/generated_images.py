"""The folder of generated images: which images it should hold, which it holds, and how they were generated.

Its `manifest.jsonl` has one line of JSON for each image:

    {"file": "dog2/00_0.png", "subject": "dog2", "prompt": "a dog in the jungle", "seed": 0}

`seed` is optional. So is `settings.json`: an object of settings, which are copied into the results. An image may have a
mask in a file beside it, named like the masks of the data set (subjects.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import DreamCacheError
from ..io.atomic import check_writable, write_atomically
from ..io.failures import writing
from ..io.images import to_image
from ..io.json_fields import Fields, MalformedError, parse_json
from ..io.text import read_json_object, read_text
from .subjects import Subject

MANIFEST = "manifest.jsonl"
SETTINGS = "settings.json"
_LARGEST_SEED = 2**64


@dataclass(frozen=True)
class GeneratedImage:
    """One image of the manifest: already generated, or planned. The fields are the keys of its line of JSON.

    `file`: path relative to the folder. `subject`: name of the subject. `seed`: None if it isn't known.
    """

    file: str
    subject: str
    prompt: str
    seed: int | None = None


def plan_images(
    subjects: Sequence[Subject], seeds: int, folder: Path, settings: Mapping[str, Any]
) -> list[GeneratedImage]:
    """List the images that `folder` still lacks, and write the settings to it.

    The whole folder has every subject with each of its prompts, with seeds 0 to `seeds` - 1. `settings`: how the images
    are generated, as JSON. Raises DreamCacheError if the folder can't be written to, or has images of other settings or
    of other prompts.
    """
    check_writable(folder)
    path = folder / SETTINGS
    if path.is_file():
        others = read_settings(folder)
        differing = [name for name in others.keys() | settings.keys() if others.get(name) != settings.get(name)]
        if differing:
            raise DreamCacheError(
                f"{folder} contains images generated with a different {' and '.join(sorted(differing))}: choose "
                "another folder."
            )
    with writing(folder):
        write_atomically(path, json.dumps(settings, indent=2).encode())
    existing = {image.file: image for image in read_manifest(folder)} if (folder / MANIFEST).is_file() else {}
    planned = [
        GeneratedImage(f"{subject.name}/{number:02}_{seed}.png", subject.name, prompt, seed)
        for subject in subjects
        for seed in range(seeds)
        for number, prompt in enumerate(subject.prompts)
    ]
    for image in planned:
        if existing.get(image.file, image) != image:
            raise DreamCacheError(
                f"{folder / image.file} was generated from a different prompt than the subject has now: choose "
                "another folder."
            )
    return [image for image in planned if image.file not in existing]


def save_image(folder: Path, image: GeneratedImage, pixels: torch.Tensor) -> None:
    """Write an image file, and then add its line to the manifest. `pixels`: (height, width, 3), 0…1.

    Raises DreamCacheError if that fails.
    """
    path = folder / image.file
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        to_image(pixels).save(path)
        with (folder / MANIFEST).open("a", encoding="utf-8") as manifest:
            manifest.write(json.dumps(asdict(image), ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> list[GeneratedImage]:
    """Read the images of a folder, in the order of its manifest.

    Raises DreamCacheError if the manifest is missing or empty, or if a line of it is malformed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DreamCacheError(
            f'{folder} has no {MANIFEST}: generate images into it first, or write a line {{"file": …, "subject": …, '
            '"prompt": …}} for each image.'
        )
    images = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            if line.strip():
                images.append(_read_line(line))
        except MalformedError as error:
            raise DreamCacheError(
                f'Line {number} of {path} is not of the form {{"file": …, "subject": …, "prompt": …}}: correct or '
                "remove it."
            ) from error
    if not images:
        raise DreamCacheError(f"{path} is empty, so there is nothing to score.")
    return images


def read_settings(folder: Path) -> dict[str, Any]:
    """Read how the images of a folder were generated; empty if its `settings.json` is missing."""
    path = folder / SETTINGS
    return read_json_object(path, "delete it, or choose another folder") if path.is_file() else {}


def _read_line(line: str) -> GeneratedImage:
    """The image in a line of the manifest. Raises MalformedError if it is of another form."""
    fields = Fields(parse_json(line))
    seed = fields.whole("seed", -_LARGEST_SEED, _LARGEST_SEED) if fields.has("seed") else None
    return GeneratedImage(fields.text("file"), fields.text("subject"), fields.text("prompt"), seed)
