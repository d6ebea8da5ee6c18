"""Atomic writing: a file has all of its new content, or is unchanged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_PARTIAL_FILE = re.compile(r"\..+\.[0-9a-f]{32}", re.DOTALL)


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
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that were killed had written so far. No other process may be writing into the folder."""
    for path in folder.glob(".*"):
        if _PARTIAL_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
