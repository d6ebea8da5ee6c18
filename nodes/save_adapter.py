"""DreamCache Save Adapter: an adapter becomes a file of the `dreamcache` models folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core import Adapter, DreamCacheError, save_adapter
from .adapter_loader import FOLDER
from .folders import is_inside
from .on_node import show_text
from .types import TRAINING_CATEGORY, AdapterType

PRECISIONS = {"float16": torch.float16, "float32": torch.float32}


class DreamCacheSaveAdapter(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheSaveAdapter",
            display_name="DreamCache Save Adapter",
            category=TRAINING_CATEGORY,
            description="Saves an adapter where DreamCache Adapter Loader finds it.",
            search_aliases=["export adapter", "save model", "convert adapter"],
            inputs=[
                AdapterType.Input("adapter", tooltip="From DreamCache Train Adapter, or from any other node."),
                io.String.Input(
                    "filename_prefix",
                    default="my_adapter",
                    tooltip="What the file's name begins with, in models/dreamcache; a number is added, so that no "
                    "file is overwritten. There may be folders in it, as in cups/my_adapter.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float16",
                    tooltip="float16 makes half as large a file, 50 MB for SD1.5, and draws all but the same "
                    "pictures. Take float32 to train on from the file.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        # None: the name comes from another node.
        return True if filename_prefix is None or is_inside(_folder(), filename_prefix) else _outside(filename_prefix)

    @classmethod
    @override
    def execute(cls, adapter: ModelPatcher, filename_prefix: str, precision: str) -> io.NodeOutput:
        if not is_inside(_folder(), filename_prefix):
            raise DreamCacheError(_outside(filename_prefix))
        try:
            path = _save(adapter.model, filename_prefix, PRECISIONS[precision])
        except OSError as error:
            raise DreamCacheError(
                f"{filename_prefix} could not be written to {_folder()}: {error.strerror}; make room or choose another "
                "name."
            ) from error
        text = f"Saved {path.relative_to(_folder()).as_posix()}, {path.stat().st_size / 1e6:,.1f} MB."
        show_text(cls, text)
        return io.NodeOutput(ui={"text": [text]})


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def _outside(prefix: str) -> str:
    return f'"{prefix}" is no name for a file inside {_folder()}: write one such as my_adapter or cups/my_adapter.'


def _save(adapter: Adapter, prefix: str, precision: torch.dtype) -> Path:
    """Write an adapter under the next number that is free, whole or not at all."""
    path = _take_number(prefix)
    try:
        save_adapter(path, adapter, precision)
    except BaseException:
        path.unlink()
        raise
    return path


def _take_number(prefix: str) -> Path:
    """Make the next number this process's, by an empty file of its name."""
    while True:
        folder, name, number, *_ = folder_paths.get_save_image_path(prefix, str(_folder()))
        path = Path(folder, f"{name}_{number:05}_.safetensors")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue  # Another process was faster.
        return path
