"""Atomic writing: a file is there with all of its new content, or as it was before."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Write a file, and the folders that lead to it. Nothing half-written is left if that fails.

    `durable`: the content is on the disk, not only in the system's memory, before the file gets its name.
    Raises OSError if it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
