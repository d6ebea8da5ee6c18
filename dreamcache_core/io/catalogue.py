"""A catalogue of files: their descriptions, cached until a file changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

Description = TypeVar("Description")


class Catalogue(Generic[Description]):
    """Caches what `describe` returns for each file, until the file's size or modification time changes. Thread-safe."""

    def __init__(self, describe: Callable[[Path], Description]) -> None:
        self._describe = describe
        # Path → ((modification time in ns, size in bytes), description).
        self._known: dict[Path, tuple[tuple[int, int], Description]] = {}

    def describe(self, path: Path) -> Description:
        """The description of one file. The description of a missing file isn't cached."""
        try:
            status = path.stat()
        except OSError:
            self._known.pop(path, None)
            return self._describe(path)
        state = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != state:
            known = self._known[path] = state, self._describe(path)
        return known[1]

    def describe_all(self, files: Mapping[str, Path]) -> dict[str, Description]:
        """The description of each file by its name, and forget all other files. `files`: name → path."""
        descriptions = {name: self.describe(path) for name, path in files.items()}
        known = self._known.copy()
        self._known = {path: known[path] for path in files.values() if path in known}
        return descriptions
