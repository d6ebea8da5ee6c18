"""DreamCache in plain PyTorch: which layers, what is cached, what is trained, and how both lie on disk.

Nothing here knows of ComfyUI; `nodes/` brings the two together. Paper: arXiv 2411.17786.
"""

from .adapter import Adapter, AdapterLayer, Attention, attend
from .adapter_file import SUFFIXES, AdapterFile, load_adapter, save_adapter
from .errors import DreamCacheError
from .layers import DEFAULT_STAGES, STAGES, Stage, TransformerLayer, UNetStructure, read_structure, select_layers
from .reference_cache import ReferenceCache, load_reference_cache
from .reference_image import resize_to_area, subject_on_white

__all__ = [
    "DEFAULT_STAGES",
    "STAGES",
    "SUFFIXES",
    "Adapter",
    "AdapterFile",
    "AdapterLayer",
    "Attention",
    "DreamCacheError",
    "ReferenceCache",
    "Stage",
    "TransformerLayer",
    "UNetStructure",
    "attend",
    "load_adapter",
    "load_reference_cache",
    "read_structure",
    "resize_to_area",
    "save_adapter",
    "select_layers",
    "subject_on_white",
]
