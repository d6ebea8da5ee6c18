"""Atomic writing: a file has all of its new content, or is unchanged."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from .failures import writing

_PARTIAL_FILE = re.compile(r"\.(.+)\.[0-9a-f]{32}", re.DOTALL)


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Write a file, and make its parent folders. A failed write leaves no partial file.

    `durable`: flush the content to the disk before the file gets its name, so that it survives a power failure.
    Raises OSError if the file can't be written.
    """
    with open_atomically(path, durable=durable) as file:
        file.write(content)


@contextmanager
def open_atomically(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write it piece by piece. It gets its name when the block ends without an error.

    Otherwise like `write_atomically`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise DreamCacheError unless files can be written into a folder, or the folder can be made. Leaves no trace."""
    with writing(folder):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=existing).close()


def remove_partial_files(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove what processes that were killed had written so far. No other process may be writing into the folder.

    `is_ours`: whether the name of a complete file is one that is written there; partial files of others are kept.
    """
    for path in folder.glob(".*"):
        partial = _PARTIAL_FILE.fullmatch(path.name)
        if partial and is_ours(partial[1]) and path.is_file():
            path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
