"""A catalogue of files: their descriptions, cached until a file changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from .file_state import FileState, file_state

Description = TypeVar("Description")

_LOG = logging.getLogger(__name__)


class Catalogue(Generic[Description]):
    """Caches what `describe` returns for each file, until the file changes. Thread-safe."""

    def __init__(self, describe: Callable[[Path], Description], describe_failed: Callable[[Path], Description]) -> None:
        """`describe_failed`: describes a file for which `describe` raised, so that the others are still listed."""
        self._describe_sound = describe
        self._describe_failed = describe_failed
        self._known: dict[Path, tuple[FileState, Description]] = {}

    def describe(self, path: Path) -> Description:
        """The description of one file. That of a missing file isn't cached, nor that of one which is being written."""
        try:
            state = file_state(path)
        except OSError:
            self._known.pop(path, None)
            return self._describe(path)
        known = self._known.get(path)
        if known is None or known[0] != state:
            known = state, self._describe(path)
            if state.is_settled:
                self._known[path] = known
        return known[1]

    def _describe(self, path: Path) -> Description:
        try:
            return self._describe_sound(path)
        except Exception:
            _LOG.exception("%s could not be described.", path)
            return self._describe_failed(path)

    def describe_all(self, files: Mapping[str, Path]) -> dict[str, Description]:
        """The description of each file by its name, and forget all other files. `files`: name → path."""
        descriptions = {name: self.describe(path) for name, path in files.items()}
        known = self._known.copy()
        self._known = {path: known[path] for path in files.values() if path in known}
        return descriptions
