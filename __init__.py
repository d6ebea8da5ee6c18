"""DreamCache for ComfyUI: your dog, shoe or toy in a new picture, without training on it."""

from __future__ import annotations

from comfyui_version import __version__ as comfyui_version

from .nodes.host.version_check import check_comfyui

check_comfyui(comfyui_version)

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .dreamcache_core.adapter.file import SUFFIXES
from .nodes.adapter_loader import DreamCacheAdapterLoader
from .nodes.apply import ApplyDreamCache
from .nodes.combine_references import DreamCacheCombineReferences
from .nodes.compare import DreamCacheCompare
from .nodes.demo_model import DreamCacheDemoModel
from .nodes.encode_reference import DreamCacheEncodeReference
from .nodes.evaluate import DreamCacheEvaluate
from .nodes.guider import DreamCacheGuider
from .nodes.host.folders import ADAPTERS, REFERENCES, register_models_folder
from .nodes.host.inputs import check_numbers
from .nodes.host.routes import register_routes
from .nodes.host.templates import place_photograph
from .nodes.load_reference_cache import DreamCacheLoadReferenceCache
from .nodes.one_node import DreamCacheOneNode
from .nodes.preview_attention import DreamCachePreviewAttention
from .nodes.preview_reference_cache import DreamCachePreviewReferenceCache
from .nodes.prompt_source import DreamCachePromptSource
from .nodes.save_adapter import DreamCacheSaveAdapter
from .nodes.save_reference_cache import DreamCacheSaveReferenceCache
from .nodes.save_triplet import DreamCacheSaveTriplet
from .nodes.strengths import DreamCacheStrengths
from .nodes.train_adapter import DreamCacheTrainAdapter

# Help pages: web/docs/<node id>.md.
WEB_DIRECTORY = "./web"


class DreamCacheExtension(ComfyExtension):
    @override
    async def on_load(self) -> None:
        register_models_folder(ADAPTERS, SUFFIXES)
        register_routes()
        register_models_folder(REFERENCES, [".safetensors"])
        place_photograph()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes: list[type[io.ComfyNode]] = [
            DreamCacheEncodeReference,
            DreamCacheAdapterLoader,
            ApplyDreamCache,
            DreamCacheDemoModel,
            DreamCacheStrengths,
            DreamCacheGuider,
            DreamCacheOneNode,
            DreamCacheCombineReferences,
            DreamCacheSaveReferenceCache,
            DreamCacheLoadReferenceCache,
            DreamCachePreviewReferenceCache,
            DreamCachePreviewAttention,
            DreamCacheCompare,
            DreamCachePromptSource,
            DreamCacheSaveTriplet,
            DreamCacheTrainAdapter,
            DreamCacheSaveAdapter,
            DreamCacheEvaluate,
        ]
        return [check_numbers(node) for node in nodes]


async def comfy_entrypoint() -> DreamCacheExtension:
    return DreamCacheExtension()
