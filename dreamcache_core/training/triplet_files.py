"""The files of triplets: three for each, in folders, or in tars that are read like folders of the same name.

    00000/00000001_generation.png   the picture
    00000/00000001_caption.txt      its prompt
    00000/00000001_mask.png         white on its subject
    00000/00000001_reference.png    optional: another picture of the subject; the mask is optional then

Names are free, in any case, and folders may be nested; `save_triplet` numbers triplets and starts a new folder each
thousand. Pictures may be of any of `picture_types`. Hidden files are ignored.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import DreamCacheError
from ..io.failures import reading, reason, writing
from ..io.names import TEXT_TYPES, in_words, picture_types, plain
from ..io.tar_file import read_members

_FILE = re.compile(r"(.+)_(generation|mask|reference|caption)(\.[^./]+)", re.DOTALL | re.IGNORECASE)
_IN_WORDS = {"generation": "picture", "caption": "caption", "mask": "mask", "reference": "reference"}

TRIPLETS_PER_FOLDER = 1000
_NUMBERED_FILE = re.compile(r"(\d+)_(?:generation|caption|mask|reference)\..+")
_NUMBERED_FOLDER = re.compile(r"(\d{5,})(\.tar)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a file are: `size` bytes from `offset` on in a file of its own or in a tar."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class TripletFiles:
    """The files of a triplet. `mask` may be None if there is a `reference`."""

    name: str
    picture: Place
    caption: Place
    mask: Place | None
    reference: Place | None


def find_triplets(folder: Path) -> tuple[list[TripletFiles], list[str]]:
    """All triplets of a folder that have all their files, ordered by name; and a sentence for each that lacks one.

    Reads names, sizes and the headers of tars, but no file's content. Raises DreamCacheError if the folder can't be
    read.
    """
    problems: list[str] = []
    found: dict[str, Files] = {}
    with reading(folder):
        for path, place in _walk(str(folder), "", problems):
            name, kind, suffix = _FILE.fullmatch(path).groups()  # type: ignore[union-attr]
            file = _File(name, path, suffix.lower() in _types(kind.lower()), place)
            found.setdefault(name, {}).setdefault(kind.lower(), []).append(file)
    triplets = []
    for files in _merge(found):
        triplet = _triplet(files)
        if isinstance(triplet, TripletFiles):
            triplets.append(triplet)
        elif triplet:
            problems.append(triplet)
    return sorted(triplets, key=lambda triplet: triplet.name), sorted(problems)


def save_triplet(folder: Path, pictures: Mapping[str, Image.Image], prompt: str) -> Path:
    """Write a triplet under the next number, completely or not at all. Several processes may write into one folder.

    `pictures`: by `generation`, `mask` and `reference`. Returns the path of the `generation`.
    Raises DreamCacheError if it can't be written.
    """
    with writing(f"A triplet in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            # Everything slow or large is done before a number is taken. The picture is moved last: without it, the
            # other files are no triplet.
            Path(temporary, "caption.txt").write_bytes(prompt.encode(errors="replace"))
            for kind, picture in pictures.items():
                picture.save(Path(temporary, f"{kind}.png"), compress_level=4)
            stem = _take_number(folder)
            for file in ("caption.txt", "mask.png", "reference.png", "generation.png"):
                if Path(temporary, file).exists():
                    Path(temporary, file).replace(f"{stem}_{file}")
    return Path(f"{stem}_generation.png")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a triplet. `name`: of the triplet. `path`: in the folder. `is_read`: whether files of its type are."""

    name: str
    path: str
    is_read: bool
    place: Place


Files = dict[str, list[_File]]
"""The files of a triplet by their kind."""


def _merge(found: Mapping[str, Files]) -> Iterator[Files]:
    """The files of each triplet. Where some are missing, names that differ only in case or Unicode form are one.

    `found`: by the triplets' exact names.
    """
    incomplete: dict[str, Files] = {}
    for name, files in found.items():
        if _missing(files) is None:
            yield files
            continue
        merged = incomplete.setdefault(plain(name), {})
        for kind, of_kind in files.items():
            merged.setdefault(kind, []).extend(of_kind)
    yield from incomplete.values()


def _missing(files: Files) -> str | None:
    """The kind of a file that a triplet lacks."""
    kinds = {kind for kind, of_kind in files.items() if any(file.is_read for file in of_kind)}
    needed = ("generation", "caption", *(() if "reference" in kinds else ("mask",)))
    return next((kind for kind in needed if kind not in kinds), None)


def _walk(
    folder: str, prefix: str, problems: list[str], parents: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Place]]:
    """The files of triplets under a folder, with their paths in it. Raises OSError if the folder can't be read; what
    can't be read in it is a problem.

    `parents`: the real paths of the folders that it is in.
    """
    parents |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    if os.path.realpath(entry.path) in parents:
                        problems.append(f"{entry.path} is a link to a folder that it is in: it is left out.")
                    else:
                        yield from _walk(entry.path, f"{prefix}{entry.name}/", problems, parents)
                elif entry.name.lower().endswith(".tar"):
                    yield from _members(entry.path, f"{prefix}{entry.name[: -len('.tar')]}/", problems)
                elif _FILE.fullmatch(entry.name) and entry.is_file():
                    yield prefix + entry.name, Place(entry.path, 0, entry.stat().st_size)
            except OSError as error:
                problems.append(f"{entry.path} cannot be read: {reason(error)}.")


def _members(path: str, prefix: str, problems: list[str]) -> Iterator[tuple[str, Place]]:
    """The files of triplets in a tar, with the paths that they would have in a folder of its name."""
    try:
        for member, offset, size in read_members(Path(path)):
            name = posixpath.normpath(member)
            if _FILE.fullmatch(name) and not posixpath.basename(name).startswith("."):
                yield prefix + name, Place(path, offset, size)
    except DreamCacheError as error:
        problems.append(str(error))


def _triplet(found: Files) -> TripletFiles | str | None:
    """A triplet, or what is wrong with it as far as names and sizes show.

    None for files that only happen to have such a name.
    """
    read = {kind: [file for file in files if file.is_read] for kind, files in found.items()}
    read = {kind: files for kind, files in read.items() if files}
    if not read:
        return None
    name = next(iter(found.get("generation") or next(iter(found.values())))).name
    missing = _missing(found)
    if missing:
        return f"{name}: its {_IN_WORDS[missing]} is missing{_seen_instead(missing, found.get(missing, ()))}."
    for kind, files in read.items():
        if len(files) > 1:
            paths = sorted(file.path for file in files)
            return f"{name}: there are several files for its {_IN_WORDS[kind]}: {' and '.join(paths)}."
        if not files[0].place.size:
            return f"{name}: its {_IN_WORDS[kind]} is empty."
    places = {kind: files[0].place for kind, files in read.items()}
    return TripletFiles(name, places["generation"], places["caption"], places.get("mask"), places.get("reference"))


def _seen_instead(kind: str, files: Sequence[_File]) -> str:
    """A file of this kind whose type isn't read, to end a sentence."""
    return f"; {files[0].path} must be {in_words(_types(kind))}" if files else ""


def _types(kind: str) -> tuple[str, ...]:
    return TEXT_TYPES if kind == "caption" else picture_types()


def _take_number(folder: Path) -> Path:
    """Reserve the next number for this process by creating its caption. Returns what the files' names begin with."""
    number = _highest_number(folder)
    while True:
        number += 1
        stem = folder / f"{number // TRIPLETS_PER_FOLDER:05}" / f"{number:08}"
        stem.parent.mkdir(exist_ok=True)
        try:
            Path(f"{stem}_caption.txt").touch(exist_ok=False)
        except FileExistsError:
            continue  # Another process was faster.
        return stem


def _highest_number(folder: Path) -> int:
    """The highest number in use, 0 for none. Lists only the last folder of a thousand triplets."""
    numbers = [0, *_numbers(folder)]
    folders = [match for match in (_NUMBERED_FOLDER.fullmatch(path.name) for path in folder.iterdir()) if match]
    last = max((int(match[1]) for match in folders), default=0)
    for match in folders:
        if int(match[1]) == last:
            numbers.append(last * TRIPLETS_PER_FOLDER - 1)
            # A tar counts as full: folders are packed when they are.
            numbers += [(last + 1) * TRIPLETS_PER_FOLDER - 1] if match[2] else _numbers(folder / match[0])
    return max(numbers)


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for match in (_NUMBERED_FILE.fullmatch(path.name) for path in folder.iterdir()) if match]
