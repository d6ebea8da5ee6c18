"""The files of triplets: three for each, in folders, or in tars that are read like folders of the same name.

    00000/00000001_generation.png   the picture
    00000/00000001_caption.txt      its prompt
    00000/00000001_mask.png         white on its subject
    00000/00000001_reference.png    optional: another picture of the subject; the mask is optional then

Names are free, and folders may be nested. `save_triplet` numbers triplets and starts a new folder each thousand. Data
sets made elsewhere may also have a folder for each triplet (00000001/generation.png), a folder for each kind of file
(masks/00000001_mask.png), or dots (00000001.mask.png). Pictures may be .png, .jpg, .jpeg or .webp. Hidden files are
ignored.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import DreamCacheError
from ..io.atomic import open_atomically

_FILE = re.compile(r"(.+)[_./](?:(generation|mask|reference)\.(?i:png|jpe?g|webp)|(caption)\.(?i:txt))", re.DOTALL)
_COMPRESSED = re.compile(r".+\.(?i:tar\.\w+|tgz|zip|7z|rar)")
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

    Reads names, sizes and the headers of tars, but no file's content.
    """
    found: dict[str, dict[str, Place]] = {}
    problems: list[str] = []
    twice: dict[str, str] = {}
    for path, place in _walk(str(folder), "", problems):
        name, picture, caption = _FILE.fullmatch(path).groups()  # type: ignore[union-attr]
        kind = picture or caption
        if kind in found.setdefault(name, {}):
            twice[name] = f"{name}: there are two files for its {_IN_WORDS[kind]}."
        found[name][kind] = place
    _join_folders_of_one_kind(found, twice)
    triplets = []
    for name in sorted(found):
        problem = twice.get(name) or _problem(name, found[name])
        if problem:
            problems.append(problem)
        else:
            files = found[name]
            triplets.append(
                TripletFiles(name, files["generation"], files["caption"], files.get("mask"), files.get("reference"))
            )
    return triplets, problems


def save_triplet(folder: Path, pictures: Mapping[str, Image.Image], prompt: str) -> Path:
    """Write a triplet under the next number, completely or not at all. Several processes may write into one folder.

    `pictures`: by `generation`, `mask` and `reference`. Returns the path of the `generation`.
    Raises DreamCacheError if it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            # Everything slow or large is done before a number is taken. The picture is moved last: without it, the
            # other files are no triplet.
            Path(temporary, "caption.txt").write_bytes(prompt.encode())
            for kind, picture in pictures.items():
                picture.save(Path(temporary, f"{kind}.png"), compress_level=4)
            stem = _take_number(folder)
            for file in ("caption.txt", "mask.png", "reference.png", "generation.png"):
                if Path(temporary, file).exists():
                    Path(temporary, file).replace(f"{stem}_{file}")
    except OSError as error:
        raise DreamCacheError(
            f"Cannot write a triplet to {folder}: {error.strerror}; free some space or choose another folder."
        ) from error
    return Path(f"{stem}_generation.png")


@contextmanager
def write_tar(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Write a tar of triplets, completely or not at all. The same files make the same bytes.

    Gives a function that adds a file by its name and content. A content that is in the tar already becomes a hard link,
    so a picture that serves as a target and as a reference is stored once. Raises OSError if the tar can't be written.
    """
    names: dict[bytes, str] = {}

    def add(name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        first = names.setdefault(hashlib.sha256(content).digest(), name)
        if first == name:
            member.size = len(content)
        else:
            member.type, member.linkname = tarfile.LNKTYPE, first
        tar.addfile(member, io.BytesIO(content))

    with open_atomically(path, durable=True) as file, tarfile.open(fileobj=file, mode="w") as tar:
        yield add


def _walk(folder: str, prefix: str, problems: list[str]) -> Iterator[tuple[str, Place]]:
    """The files of triplets under a folder, with their paths in it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", problems)
            elif entry.name.endswith(".tar"):
                yield from _members(entry.path, f"{prefix}{entry.name.removesuffix('.tar')}/", problems)
            elif _COMPRESSED.fullmatch(entry.name):
                problems.append(f"{entry.path} is compressed, and is not read: unpack it.")
            elif _FILE.fullmatch(prefix + entry.name) and entry.is_file():
                yield prefix + entry.name, Place(entry.path, 0, entry.stat().st_size)


def _members(path: str, prefix: str, problems: list[str]) -> Iterator[tuple[str, Place]]:
    """The files of triplets in a tar, with the paths that they would have in a folder of its name."""
    places: dict[str, Place] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if member.isreg():
                    places[name] = Place(path, member.offset_data, member.size)
                elif member.islnk() and (linked := places.get(posixpath.normpath(member.linkname))):
                    places[name] = linked
                else:
                    continue
                if _FILE.fullmatch(prefix + name) and not posixpath.basename(name).startswith("."):
                    yield prefix + name, places[name]
    except (tarfile.TarError, OSError):
        problems.append(f"{path} is damaged or not an uncompressed tar: everything after the damage is skipped.")


def _join_folders_of_one_kind(found: dict[str, dict[str, Place]], twice: Mapping[str, str]) -> None:
    """Put triplets together whose files lie in a folder for each kind, as in images/1_generation.png, masks/1_mask.png.

    Such triplets lose that folder from their names. Nothing changes where the result would not be a complete triplet.
    `twice`: names with two files of one kind, which are left alone.
    """
    kinds: dict[str, set[str]] = {}
    for name, files in found.items():
        for folder in _folders(name):
            kinds.setdefault(folder, set()).update(files)
    groups: dict[str, list[str]] = {}
    for name in found:
        of_one_kind = [folder for folder in _folders(name) if len(kinds[folder]) == 1]
        if of_one_kind and name not in twice:
            parent = of_one_kind[0][: of_one_kind[0].rfind("/") + 1]
            groups.setdefault(parent + name[len(of_one_kind[0]) + 1 :], []).append(name)
    for joined, names in groups.items():
        files = {kind: place for name in names for kind, place in found[name].items()}
        if joined not in found and len(files) == len(names) and not _problem(joined, files):
            for name in names:
                del found[name]
            found[joined] = files


def _folders(name: str) -> list[str]:
    """The folders that a triplet lies in, from the top: "a" and "a/b" for "a/b/1"."""
    return [name[: match.start()] for match in re.finditer("/", name)]


def _problem(name: str, files: Mapping[str, Place]) -> str | None:
    """What is wrong with a triplet, as far as names and sizes show."""
    needed = ["generation", "caption", *([] if "reference" in files else ["mask"])]
    for kind in needed:
        if kind not in files:
            return f"{name}: its {_IN_WORDS[kind]} is missing."
    for kind, place in files.items():
        if not place.size:
            return f"{name}: its {_IN_WORDS[kind]} is empty."
    return None


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
