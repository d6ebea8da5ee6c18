"""The files of triplets: three for each, in folders, or in tars that are read like folders of the same name.

    00000/00000001_generation.png   the picture
    00000/00000001_caption.txt      its prompt
    00000/00000001_mask.png         white on its subject
    00000/00000001_reference.png    optional: another picture of the subject; the mask is optional then

Names are free, and folders may be nested. `save_triplet` numbers triplets and starts a new folder each thousand. Data
sets made elsewhere may also have a folder for each triplet (00000001/generation.png), a folder for each kind of file
(masks/00000001_mask.png), or dots (00000001.mask.png). Names may be in any case, and pictures of any of
`picture_types`. Hidden files are ignored.
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
from pathlib import Path

from PIL import Image

from ..errors import DreamCacheError
from ..io.atomic import open_atomically
from ..io.failures import reading, reason, writing
from ..io.tar_file import read_members
from .triplet_matching import Place, TripletFiles, is_triplets, match_files

_COMPRESSED = re.compile(r".+\.(?i:tar\.\w+|tgz|zip|7z|rar)")

TRIPLETS_PER_FOLDER = 1000
_NUMBERED_FILE = re.compile(r"(\d+)_(?:generation|caption|mask|reference)\..+")
_NUMBERED_FOLDER = re.compile(r"(\d{5,})(\.tar)?")


def find_triplets(folder: Path) -> tuple[list[TripletFiles], list[str]]:
    """All triplets of a folder that have all their files, ordered by name; and a sentence for each that lacks one, and
    for all that can't be read.

    Reads names, sizes and the headers of tars, but no file's content. Raises DreamCacheError if the folder can't be
    read.
    """
    unreadable: list[str] = []
    with reading(folder):
        triplets, problems = match_files(_walk(str(folder), "", unreadable))
    return triplets, sorted(unreadable) + problems


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
                elif _COMPRESSED.fullmatch(entry.name):
                    problems.append(f"{entry.path} is compressed, and is not read: unpack it.")
                elif is_triplets(prefix + entry.name) and entry.is_file():
                    yield prefix + entry.name, Place(entry.path, 0, entry.stat().st_size)
            except OSError as error:
                problems.append(f"{entry.path} cannot be read: {reason(error)}.")


def _members(path: str, prefix: str, problems: list[str]) -> Iterator[tuple[str, Place]]:
    """The files of triplets in a tar, with the paths that they would have in a folder of its name."""
    try:
        for member, offset, size in read_members(Path(path)):
            name = posixpath.normpath(member)
            if is_triplets(prefix + name) and not posixpath.basename(name).startswith("."):
                yield prefix + name, Place(path, offset, size)
    except DreamCacheError as error:
        problems.append(str(error))


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
