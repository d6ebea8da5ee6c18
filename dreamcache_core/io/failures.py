"""What the operating system refuses, as a sentence that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DreamCacheError

_DENIED = "permission is denied; change its permissions or choose another place"
_FULL = "the disk is full; free some space"
_NO_FOLDER = "a file has the name of a folder in its path; rename one of them"
_REASONS = {
    errno.ENOENT: "it does not exist; check its name",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "the disk is read-only; choose another place",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ELOOP: "its links lead in a circle; remove one of them",
    errno.EISDIR: "it is a folder, not a file; choose another name",
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
}


def reason(error: OSError) -> str:
    """Why something failed and what to do, to end a sentence: `the disk is full; free some space`."""
    return _REASONS.get(error.errno or 0) or f"{error.strerror or error}; choose another place"


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Turn an OSError into a DreamCacheError. `what`: a path, or the thing in words, that is read."""
    try:
        yield
    except OSError as error:
        raise DreamCacheError(f"{what} cannot be read: {reason(error)}.") from error


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turn an OSError into a DreamCacheError. `what`: a path, or the thing in words, that is written."""
    try:
        yield
    except OSError as error:
        raise DreamCacheError(f"{what} cannot be written: {reason(error)}.") from error
