"""Names of files and folders that come from the graph, which stay inside ComfyUI's own folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def is_inside(folder: Path, name: str) -> bool:
    """Whether `name` is of something in `folder`, or in a folder of it."""
    if not name.strip() or Path(name).is_absolute():
        return False
    if not folder_paths.is_within_directory(str(folder), str(folder / name)):
        return False
    return (folder / name).resolve() != folder.resolve()


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())
