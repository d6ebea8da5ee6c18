"""A catalogue of files: descriptions that are made again only when a file has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

Description = TypeVar("Description")


class Catalogue(Generic[Description]):
    """Descriptions of files by `describe`, for any number of threads. A file is read again when it has changed."""

    def __init__(self, describe: Callable[[Path], Description]) -> None:
        self._describe = describe
        self._known: dict[Path, tuple[tuple[int, int], Description]] = {}

    def describe(self, path: Path) -> Description:
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
        """Describe `files`, path by name, and forget all others."""
        descriptions = {name: self.describe(path) for name, path in files.items()}
        known = self._known.copy()
        self._known = {path: known[path] for path in files.values() if path in known}
        return descriptions
