"""Uncompressed tars: where the files in one are, from its headers (POSIX ustar and pax, and GNU).

Python's own reader trusts the headers: a crafted one keeps it busy for ever, or makes it raise almost any type.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ..errors import DreamCacheError
from .failures import reason

_BLOCK = 512
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_TYPE = slice(156, 157)
_LINK = slice(157, 257)
_FILES = (b"0", b"\0", b"7")
# Links, devices, folders and pipes, which no data follow, whatever size they give.
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_HARD_LINK = b"1"
_LONG_NAME, _LONG_LINK, _EXTENDED, _SPARSE = b"L", b"K", b"x", b"S"
# The names of their texts in extended headers.
_LONG_FIELDS = {_LONG_NAME: "path", _LONG_LINK: "linkpath"}
# Bytes of a long name, and of an extended header.
_MAX_EXTENSION = 1_000_000


def read_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """The name of each file in a tar, with the offset and the size of its bytes. A hard link has those of its file.

    Raises DreamCacheError at the first header that is damaged, after the files before it.
    """
    try:
        with path.open("rb") as file:
            yield from _read_members(file, path.stat().st_size)
    except OSError as error:
        raise DreamCacheError(f"{path} cannot be read: {reason(error)}.") from error
    except ValueError as error:
        raise DreamCacheError(
            f"{path} is damaged or not an uncompressed tar: everything after the damage is skipped."
        ) from error


def _read_members(file: BinaryIO, length: int) -> Iterator[tuple[str, int, int]]:
    """Raises ValueError for a damaged header. `length`: of the file."""
    if not length:
        raise ValueError("no header")
    position = 0
    extended: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}
    while position < length:
        file.seek(position)
        header = file.read(_BLOCK)
        if not any(header):
            return
        _check(header)
        kind, size, data = header[_TYPE], _number(header[_SIZE]), position + _BLOCK
        if kind in _FILES and "size" in extended:
            size = int(extended["size"])
        if kind in _WITHOUT_DATA:
            size = 0
        if size < 0 or data + size > length:
            raise ValueError("data outside of the file")
        if kind == _SPARSE:
            raise ValueError("a sparse file, whose bytes lie in several places")
        if kind in (_LONG_NAME, _LONG_LINK, _EXTENDED):
            if size > _MAX_EXTENSION:
                raise ValueError("too long a name")
            content = file.read(size)
            extended |= _records(content) if kind == _EXTENDED else {_LONG_FIELDS[kind]: _text(content)}
        else:
            name = extended.get("path") or _name(header)
            # An old tar marks a folder by its name alone; a pax one gives the map of a sparse file.
            if kind in _FILES and not name.endswith("/") and "GNU.sparse.major" not in extended:
                places[posixpath.normpath(name)] = data, size
                yield name, data, size
            elif kind == _HARD_LINK:
                linked = posixpath.normpath(extended.get("linkpath") or _text(header[_LINK]))
                if linked in places:
                    yield name, *places[linked]
            extended = {}
        position = data + -(-size // _BLOCK) * _BLOCK


def _check(header: bytes) -> None:
    """Raise ValueError unless the header's checksum is right."""
    if len(header) < _BLOCK:
        raise ValueError("a header that was cut off")
    if _number(header[_CHECKSUM]) != sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" "):
        raise ValueError("a header with another checksum")


def _number(field: bytes) -> int:
    """A number in octal digits, or for large files in binary after a byte of 128."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name, folder = _text(header[:100]), _text(header[345:500])
    return f"{folder}/{name}" if folder and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _records(content: bytes) -> Mapping[str, str]:
    """The records of an extended header, each `<length of the record> <name>=<value>` and a new line."""
    records, start = {}, 0
    while start < len(content):
        digits = content[start : start + 10].partition(b" ")[0]
        end = start + int(digits)
        name, separator, value = content[start + len(digits) + 1 : end - 1].partition(b"=")
        if end <= start or not separator:
            raise ValueError("a record that can't be read")
        records[name.decode(errors="replace")] = value.decode(errors="replace")
        start = end
    return records
