"""DreamCache Preview Reference Cache: what the model saw in a reference, in colours."""

from __future__ import annotations

from comfy_api.latest import io, ui
from typing_extensions import override

from ..dreamcache_core.figures.reference_sheet import reference_sheet
from ..dreamcache_core.io.images import to_tensor
from ..dreamcache_core.reference.cache import ReferenceCache
from .schema import CATEGORY, ReferenceCacheType


class DreamCachePreviewReferenceCache(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCachePreviewReferenceCache",
            display_name="DreamCache Preview Reference Cache",
            category=CATEGORY,
            description="Shows what the model sees in your subject: the features of each layer, as colours.",
            search_aliases=["show features", "visualize", "PCA"],
            inputs=[
                ReferenceCacheType.Input(
                    "reference_cache",
                    tooltip="From DreamCache Encode Reference, Combine References or Load Reference Cache.",
                )
            ],
            outputs=[io.Image.Output("image", tooltip="The sheet: each reference, and its features in each layer.")],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(cls, reference_cache: ReferenceCache) -> io.NodeOutput:
        image = to_tensor(reference_sheet(reference_cache)).unsqueeze(0)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
