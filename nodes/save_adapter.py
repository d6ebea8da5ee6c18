"""DreamCache Save Adapter: an adapter becomes a file of the `dreamcache` models folder."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.adapter.file import save_adapter
from ..dreamcache_core.errors import DreamCacheError
from .host.folders import ADAPTERS, is_inside, models_folder, outside_message, save_numbered
from .host.node_text import show_text
from .host.patching.injection import AnyAdapter, unfused
from .schema import TRAINING_CATEGORY, AdapterType

PRECISIONS = {"float16": torch.float16, "float32": torch.float32}
_EXAMPLE = "my_adapter"


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
                    default=_EXAMPLE,
                    tooltip="Start of the file name in models/dreamcache. It may contain folders, such as "
                    "cups/my_adapter. A number is added, so no file is overwritten.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float16",
                    tooltip="float16 halves the file (50 MB for SD1.5) and generates almost identical images. Choose "
                    "float32 to continue training from the file.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        # None: the name comes from another node.
        folder = models_folder(ADAPTERS)
        if filename_prefix is None or is_inside(folder, filename_prefix):
            return True
        return outside_message(folder, filename_prefix, _EXAMPLE)

    @classmethod
    @override
    def execute(cls, adapter: AnyAdapter, filename_prefix: str, precision: str) -> io.NodeOutput:
        folder = models_folder(ADAPTERS)
        if not is_inside(folder, filename_prefix):
            raise DreamCacheError(outside_message(folder, filename_prefix, _EXAMPLE))
        path = save_numbered(
            folder, filename_prefix, lambda path: save_adapter(path, unfused(adapter), PRECISIONS[precision])
        )
        text = f"Saved {path.relative_to(folder).as_posix()}, {path.stat().st_size / 1e6:,.1f} MB."
        show_text(cls, text)
        return io.NodeOutput(ui={"text": [text]})
