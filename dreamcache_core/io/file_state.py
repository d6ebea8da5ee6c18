"""Files that change while they are in use: whether one has changed, and whether something is still writing it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

# In seconds. Longer than a tick of the clock that file systems stamp changes with.
_SETTLED_AFTER = 0.05
_LONGEST_WAIT = 10.0


class FileState(NamedTuple):
    """What tells that a file has changed. A program can set `modified` back, but not `changed`.

    `modified`, `changed`: times in ns; on Windows, `changed` is when the file was made. `size`: in bytes. `inode`: the
    number of the file on its disk.
    """

    modified: int
    changed: int
    size: int
    inode: int

    @property
    def is_settled(self) -> bool:
        """Whether the last change is old enough for any later one to be seen in this state."""
        # A change in the future is one of another machine's clock.
        return not 0 <= time.time() - max(self.modified, self.changed) / 1e9 < _SETTLED_AFTER


def file_state(file: Path | int) -> FileState:
    """The state of a file now. `file`: its path or its descriptor. Raises OSError if there is none."""
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return FileState(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def wait_until_settled(path: Path) -> None:
    """Wait until nothing is writing a file, for 10 seconds at most. Doesn't wait for a file to appear."""
    end = time.monotonic() + _LONGEST_WAIT
    with contextlib.suppress(OSError):
        while not file_state(path).is_settled and time.monotonic() < end:
            time.sleep(_SETTLED_AFTER / 5)


def fingerprint(path: Path) -> str:
    """A text that changes when a file does. Raises OSError if there is no file."""
    return "/".join(map(str, file_state(path)))
