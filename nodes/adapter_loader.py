"""DreamCache Adapter Loader: a file of the `dreamcache` models folder becomes an adapter."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.adapter.file import load_adapter
from .host.folders import ADAPTERS, no_such_file
from .host.patching.injection import wrap_for_sampling
from .schema import CATEGORY, AdapterType, adapter_name_input


class DreamCacheAdapterLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheAdapterLoader",
            display_name="DreamCache Adapter Loader",
            category=CATEGORY,
            description="Loads a trained adapter: this project's .safetensors, or the .pt of the paper's authors.",
            search_aliases=["personalize", "load adapter"],
            inputs=[adapter_name_input()],
            outputs=[
                AdapterType.Output("adapter", tooltip="For Apply DreamCache."),
                io.String.Output(
                    "info",
                    tooltip="Contents of the file: format, base model, size, layers and training.",
                ),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, adapter_name: str) -> bool | str:
        if folder_paths.get_full_path(ADAPTERS, adapter_name):
            return True
        return no_such_file(ADAPTERS, adapter_name, "adapter")

    @classmethod
    @override
    def fingerprint_inputs(cls, adapter_name: str) -> float:
        return _path(adapter_name).stat().st_mtime

    @classmethod
    @override
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        file = load_adapter(_path(adapter_name))
        return io.NodeOutput(wrap_for_sampling(file.adapter), file.description)


def _path(adapter_name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(ADAPTERS, adapter_name))
