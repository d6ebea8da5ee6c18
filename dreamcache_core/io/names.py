"""Names of files as people have them: in any case and Unicode form, and of any type that can be read."""

from __future__ import annotations

import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from ..errors import DreamCacheError

TEXT_TYPES = (".txt",)
_PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


@cache
def picture_types() -> tuple[str, ...]:
    """The suffixes of pictures that can be read. An old Pillow lacks some, such as .avif."""
    Image.init()
    readable = Image.registered_extensions()
    return tuple(suffix for suffix in _PICTURE_TYPES if readable.get(suffix) in Image.OPEN)


def picture_formats() -> list[str]:
    """Pillow's names of the formats of `picture_types`."""
    return list({Image.registered_extensions()[suffix] for suffix in picture_types()})


def plain(name: str) -> str:
    """A name in the form in which names are compared: those that differ in case or in Unicode form become equal."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder, in any case and Unicode form; None if there is none. Raises OSError."""
    if (folder / name).is_file():
        return folder / name
    found = [path for path in folder.iterdir() if plain(path.name) == plain(name) and path.is_file()]
    return min(found, default=None)


def check_type(path: Path | str, types: Iterable[str]) -> None:
    """Raise DreamCacheError unless a file is of one of these types. `types`: suffixes in lower case."""
    if Path(path).suffix.lower() not in types:
        raise DreamCacheError(f"{path} is of a type that is not read: save it as {in_words(types)}.")


def in_words(types: Iterable[str]) -> str:
    """Suffixes as a list for a sentence: `.png, .jpg or .webp`."""
    *others, last = types
    return f"{', '.join(others)} or {last}" if others else last


def typed_path(text: str) -> Path:
    """A path as a person types or pastes it: quotes and spaces around it, `file://` and `~` are allowed.

    The empty path, which equals `Path()`, if nothing else is left.
    """
    path = Path(_unwrap(text))
    with suppress(RuntimeError):  # It names no user's home, but is a folder such as `~old`.
        path = path.expanduser()
    return path


def path_option(text: str) -> Path:
    """The path in an option of a command. Raises ArgumentTypeError if it is empty, as an unset variable is."""
    if not _unwrap(text):
        raise ArgumentTypeError("the path is empty")
    return typed_path(text)


def _unwrap(text: str) -> str:
    path = text.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "\"'":
        path = path[1:-1].strip()
    return url2pathname(urlsplit(path).path) if path.lower().startswith("file:") else path
