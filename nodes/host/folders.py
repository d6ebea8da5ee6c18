"""ComfyUI's folders, and files in them whose names come from the graph or the front end and must stay inside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import folder_paths

from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.io.failures import reason
from ...dreamcache_core.io.names import typed_path

ADAPTERS = "dreamcache"
REFERENCES = "dreamcache_references"
"""The names by which ComfyUI knows the folders of adapters and of saved references."""

NO_FOLDER = "The folder's name is empty: enter that of the folder with the triplets."


def register_models_folder(name: str, suffixes: Iterable[str]) -> None:
    """Register `models/<name>` with ComfyUI, in addition to folders of that name in extra_model_paths.yaml.

    It is made if it isn't there, for people who look for it, unless nothing can be written there.
    """
    folder = Path(folder_paths.models_dir, name)
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
    folder_paths.add_model_folder_path(name, str(folder))
    paths, known = folder_paths.folder_names_and_paths[name]
    # A folder from extra_model_paths.yaml has no suffixes of its own.
    folder_paths.folder_names_and_paths[name] = (paths, {*known, *suffixes})


def models_folder(name: str) -> Path:
    """The folder that new files are saved to, among those registered under this name."""
    return Path(folder_paths.get_folder_paths(name)[0])


def missing_file_message(folder: str, name: str, what: str) -> str:
    """The message for a name that isn't in a models folder. `what`: the kind of file, in words."""
    folders = " or ".join(folder_paths.get_folder_paths(folder))
    return f"There is no {what} {name} in {folders}: put it there, then press R to refresh the list."


def outside_message(folder: Path, prefix: str, example: str) -> str:
    """The message for a prefix that names no file inside `folder`. `example`: a valid prefix."""
    return f'"{prefix}" is not a valid file name in {folder}: use a name such as {example} or cups/{example}.'


def is_inside(folder: Path, name: str) -> bool:
    """Whether `name` is a relative path of something inside `folder`, at any depth."""
    if not name.strip() or "\0" in name or Path(name).is_absolute():
        return False
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError):  # Links that lead in a circle.
        return False
    return path != folder.resolve() and path.is_relative_to(folder.resolve())


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def trainings_folder() -> Path:
    """The parent folder of all trainings, in ComfyUI's output folder."""
    return output_folder() / "dreamcache_training"


def triplets_folder(typed: str) -> Path:
    """A folder of triplets as a person types it: one in ComfyUI's output folder, or the full path of another.

    Raises DreamCacheError if nothing is typed, which would be the output folder itself.
    """
    path = typed_path(typed)
    if path == Path():
        raise DreamCacheError(NO_FOLDER)
    return output_folder() / path


def save_numbered(folder: Path, prefix: str, write: Callable[[Path], object]) -> Path:
    """Save a .safetensors under the next free number of `prefix`. A failed save leaves nothing behind.

    `write`: writes the file. Returns its path. Raises DreamCacheError if it can't be written.
    """
    try:
        path = _reserve_number(folder, prefix)
        try:
            write(path)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise DreamCacheError(f"Cannot write {prefix} to {folder}: {reason(error)}.") from error
    return path


def import_file(folder: str, name: str, content: bytes, check: Callable[[Path], object]) -> str:
    """Save an uploaded .safetensors in a models folder under the next free number of its name, unless the folder
    already has a file with the same content.

    `check`: raises an error if the file isn't acceptable. Returns the name by which ComfyUI lists the file. Raises
    DreamCacheError if `name` isn't valid or the file can't be written, and what `check` raises.
    """
    parent, prefix = models_folder(folder), re.sub(r"(_\d{5}_)?\.safetensors$", "", name, flags=re.IGNORECASE)
    if prefix == name or not is_inside(parent, prefix):
        raise DreamCacheError(outside_message(parent, name, "my_subject.safetensors"))
    with TemporaryDirectory() as temporary:
        path = Path(temporary, Path(name).name)
        path.write_bytes(content)
        check(path)
    for known in folder_paths.get_filename_list(folder):
        path = Path(folder_paths.get_full_path_or_raise(folder, known))
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return known
    return save_numbered(parent, prefix, lambda path: path.write_bytes(content)).relative_to(parent).as_posix()


def _reserve_number(folder: Path, prefix: str) -> Path:
    """Reserve the next free number by making an empty file. Returns its path."""
    # ComfyUI counts the files of a prefix that ends in a slash wrongly.
    parent, name, number, *_ = folder_paths.get_save_image_path(os.path.normpath(prefix), str(folder))
    while True:
        path = Path(parent, f"{name}_{number:05}_.safetensors")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1  # Never the same number again: whatever ComfyUI counts, this ends.
            continue
        return path
