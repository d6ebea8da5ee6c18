"""Disks that are full or read-only, and folders that belong to somebody else. Only root can make them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[Path]:
    """A disk of 1 MB in place of a folder. `options`: of mount."""
    settings = ",".join(["size=1m", "mode=777", *options])
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """With the rights of a user who owns nothing."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
