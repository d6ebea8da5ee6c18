"""DreamCache Adapter Loader: a file of the `dreamcache` models folder becomes an adapter."""

from __future__ import annotations

from comfy_api.latest import io
from typing_extensions import override

from .host.adapters import adapter_fingerprint, check_adapter, open_adapter
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
        return check_adapter(adapter_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, adapter_name: str) -> str:
        return adapter_fingerprint(adapter_name)

    @classmethod
    @override
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        return io.NodeOutput(*open_adapter(adapter_name))
