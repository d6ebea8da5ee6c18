"""Names of files and folders that come from the graph, which stay inside ComfyUI's own folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import folder_paths

from ...dreamcache_core.errors import DreamCacheError

ADAPTERS = "dreamcache"
REFERENCES = "dreamcache_references"
"""Names of models folders."""


def register_models_folder(name: str, suffixes: Iterable[str]) -> None:
    """Make `models/<name>` known to ComfyUI, beside the folders that extra_model_paths.yaml names."""
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir, name)))
    paths, known = folder_paths.folder_names_and_paths[name]
    # A folder that extra_model_paths.yaml brought in has no suffixes of its own.
    folder_paths.folder_names_and_paths[name] = (paths, {*known, *suffixes})


def models_folder(name: str) -> Path:
    """Where files of a kind are saved."""
    return Path(folder_paths.get_folder_paths(name)[0])


def no_such_file(folder: str, name: str, what: str) -> str:
    """What to say where a models folder has no file of this name."""
    folders = " or ".join(folder_paths.get_folder_paths(folder))
    return f"There is no {what} {name} in {folders}: put it there, then press R to refresh the list."


def outside(folder: Path, prefix: str, example: str) -> str:
    """What to say where `prefix` is no name for a file inside `folder`."""
    return f'"{prefix}" is not a valid file name in {folder}: use a name such as {example} or cups/{example}.'


def is_inside(folder: Path, name: str) -> bool:
    """Whether `name` is of something in `folder`, or in a folder of it."""
    if not name.strip() or "\0" in name or Path(name).is_absolute():
        return False
    path = (folder / name).resolve()
    return path != folder.resolve() and path.is_relative_to(folder.resolve())


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def trainings_folder() -> Path:
    """The folder of all trainings, in ComfyUI's output folder."""
    return output_folder() / "dreamcache_training"


def save_numbered(folder: Path, prefix: str, write: Callable[[Path], object]) -> Path:
    """Let `write` make a .safetensors under the next number that is free: whole or not at all.

    Raises DreamCacheError if there is no writing to it.
    """
    try:
        path = _take_number(folder, prefix)
        try:
            write(path)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise DreamCacheError(
            f"Cannot write {prefix} to {folder}: {error.strerror}; free some space or choose another name."
        ) from error
    return path


def take_in(folder: str, name: str, content: bytes, check: Callable[[Path], object]) -> str:
    """Put a .safetensors that someone sends into a models folder, under the next number of `name` that is free; one
    that is there already is left there.

    Returns the name under which ComfyUI lists it. Raises DreamCacheError if `name` is no name for such a file, if there
    is no writing to it, and what `check` raises of the file.
    """
    parent, prefix = models_folder(folder), re.sub(r"(_\d{5}_)?\.safetensors$", "", name)
    if prefix == name or not is_inside(parent, prefix):
        raise DreamCacheError(outside(parent, name, "my_subject.safetensors"))
    with TemporaryDirectory() as temporary:
        path = Path(temporary, Path(name).name)
        path.write_bytes(content)
        check(path)
    for known in folder_paths.get_filename_list(folder):
        path = Path(folder_paths.get_full_path_or_raise(folder, known))
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return known
    return save_numbered(parent, prefix, lambda path: path.write_bytes(content)).relative_to(parent).as_posix()


def _take_number(folder: Path, prefix: str) -> Path:
    """Make the next number this process's, by an empty file of its name."""
    while True:
        parent, name, number, *_ = folder_paths.get_save_image_path(prefix, str(folder))
        path = Path(parent, f"{name}_{number:05}_.safetensors")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue  # Another process was faster.
        return path
