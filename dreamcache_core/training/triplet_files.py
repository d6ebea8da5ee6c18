"""How triplets lie on disk: three files a sample, in folders, or in tars that are read as the folders they were.

    00000/00000001_generation.png   the picture
    00000/00000001_caption.txt      its prompt
    00000/00000001_mask.png         white on its subject
    00000/00000001_reference.png    another picture of the subject, if there is one; then the mask may be missing

Names are free, and so are folders within folders; `save_sample` numbers its samples and starts a folder each thousand.
Pictures may be .png, .jpg, .jpeg or .webp. Hidden files are left alone.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import DreamCacheError

_FILE = re.compile(r"(.+)_(?:(generation|mask|reference)\.(?i:png|jpe?g|webp)|(caption)\.txt)", re.DOTALL)
_IN_WORDS = {"generation": "picture", "caption": "caption", "mask": "mask", "reference": "reference"}

SAMPLES_PER_FOLDER = 1000
_NUMBERED_FILE = re.compile(r"(\d+)_(?:generation|caption|mask|reference)\..+")
_NUMBERED_FOLDER = re.compile(r"(\d{5,})(\.tar)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a file lie: in a file of their own, or in a tar."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class SampleFiles:
    """The files of one sample. `mask` may be None if there is a reference."""

    name: str
    picture: Place
    caption: Place
    mask: Place | None
    reference: Place | None


def find_samples(folder: Path) -> tuple[list[SampleFiles], list[str]]:
    """All samples of a folder whose files are there, in the order of their names; and a sentence for each other.

    Reads names and sizes, of tars the headers, and nothing that is in the files.
    """
    found: dict[str, dict[str, Place]] = {}
    problems: list[str] = []
    twice: dict[str, str] = {}
    for path, place in _walk(str(folder), "", problems):
        name, picture, caption = _FILE.fullmatch(path).groups()  # type: ignore[union-attr]
        part = picture or caption
        if part in found.setdefault(name, {}):
            twice[name] = f"{name}: there are two files for its {_IN_WORDS[part]}."
        found[name][part] = place
    samples = []
    for name in sorted(found):
        problem = twice.get(name) or _problem(name, found[name])
        if problem:
            problems.append(problem)
        else:
            parts = found[name]
            samples.append(
                SampleFiles(name, parts["generation"], parts["caption"], parts.get("mask"), parts.get("reference"))
            )
    return samples, problems


def save_sample(folder: Path, pictures: Mapping[str, Image.Image], prompt: str) -> Path:
    """Write a sample under the next number, whole or not at all. Several processes may write into one folder.

    `pictures`: of `generation`, `mask` and `reference`. Returns the path of the `generation`.
    Raises DreamCacheError if it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            # All that takes time or room is done before a number is taken. The picture comes last, for without one
            # the others are no sample.
            Path(temporary, "caption.txt").write_bytes(prompt.encode())
            for part, picture in pictures.items():
                picture.save(Path(temporary, f"{part}.png"), compress_level=4)
            stem = _take_number(folder)
            for file in ("caption.txt", "mask.png", "reference.png", "generation.png"):
                if Path(temporary, file).exists():
                    Path(temporary, file).replace(f"{stem}_{file}")
    except OSError as error:
        raise DreamCacheError(
            f"Cannot write a triplet to {folder}: {error.strerror}; free some space or choose another folder."
        ) from error
    return Path(f"{stem}_generation.png")


def _walk(folder: str, prefix: str, problems: list[str]) -> Iterator[tuple[str, Place]]:
    """Files of samples under a folder, with their paths in it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", problems)
            elif entry.name.endswith(".tar"):
                yield from _members(entry.path, f"{prefix}{entry.name.removesuffix('.tar')}/", problems)
            elif _FILE.fullmatch(entry.name) and entry.is_file():
                yield prefix + entry.name, Place(entry.path, 0, entry.stat().st_size)


def _members(path: str, prefix: str, problems: list[str]) -> Iterator[tuple[str, Place]]:
    """Files of samples in a tar, under the paths that they would have in a folder of its name."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if member.isreg() and _FILE.fullmatch(name) and not posixpath.basename(name).startswith("."):
                    yield prefix + name, Place(path, member.offset_data, member.size)
    except (tarfile.TarError, OSError):
        problems.append(f"{path} is damaged or not an uncompressed tar: everything after the damage is skipped.")


def _problem(name: str, parts: Mapping[str, Place]) -> str | None:
    """What is wrong with a sample, as far as its files' names and sizes tell."""
    needed = ["generation", "caption", *([] if "reference" in parts else ["mask"])]
    for part in needed:
        if part not in parts:
            return f"{name}: its {_IN_WORDS[part]} is missing."
    for part, place in parts.items():
        if not place.size:
            return f"{name}: its {_IN_WORDS[part]} is empty."
    return None


def _take_number(folder: Path) -> Path:
    """Make the next number this process's, by creating its caption. Returns what the files' names begin with."""
    number = _highest_number(folder)
    while True:
        number += 1
        stem = folder / f"{number // SAMPLES_PER_FOLDER:05}" / f"{number:08}"
        stem.parent.mkdir(exist_ok=True)
        try:
            Path(f"{stem}_caption.txt").touch(exist_ok=False)
        except FileExistsError:
            continue  # Another process was faster.
        return stem


def _highest_number(folder: Path) -> int:
    """The highest number in use, 0 for none. Lists one thousand of the samples, however many there are."""
    numbers = [0, *_numbers(folder)]
    folders = [match for match in (_NUMBERED_FOLDER.fullmatch(path.name) for path in folder.iterdir()) if match]
    last = max((int(match[1]) for match in folders), default=0)
    for match in folders:
        if int(match[1]) == last:
            numbers.append(last * SAMPLES_PER_FOLDER - 1)
            # A tar is full, for it was packed when its folder was.
            numbers += [(last + 1) * SAMPLES_PER_FOLDER - 1] if match[2] else _numbers(folder / match[0])
    return max(numbers)


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for match in (_NUMBERED_FILE.fullmatch(path.name) for path in folder.iterdir()) if match]
