"""DreamCache Load Reference Cache: a file of the `dreamcache_references` models folder becomes a reference cache."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.io.file_state import fingerprint
from ..dreamcache_core.reference.file import load_references
from .host.folders import REFERENCES, missing_file_message
from .schema import CATEGORY, ReferenceCacheType


class DreamCacheLoadReferenceCache(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheLoadReferenceCache",
            display_name="DreamCache Load Reference Cache",
            category=CATEGORY,
            description="Loads a saved reference. It needs neither the image nor another encoding pass.",
            search_aliases=["import reference", "load embeds"],
            inputs=[
                io.Combo.Input(
                    "reference_name",
                    options=folder_paths.get_filename_list(REFERENCES),
                    tooltip="A file in models/dreamcache_references. Choose one encoded with your model's family.",
                )
            ],
            outputs=[
                ReferenceCacheType.Output("reference_cache", tooltip="For Apply DreamCache."),
                io.String.Output(
                    "info",
                    tooltip="Contents of the file: references, base model, precision, layers and how they were "
                    "encoded.",
                ),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, reference_name: str) -> bool | str:
        if folder_paths.get_full_path(REFERENCES, reference_name):
            return True
        return missing_file_message(REFERENCES, reference_name, "reference")

    @classmethod
    @override
    def fingerprint_inputs(cls, reference_name: str) -> str:
        return fingerprint(_path(reference_name))

    @classmethod
    @override
    def execute(cls, reference_name: str) -> io.NodeOutput:
        # Where Encode Reference puts its own, so that the two can be combined.
        device = comfy.model_management.intermediate_device()
        file = load_references(_path(reference_name), device)
        return io.NodeOutput(file.references, file.description)


def _path(reference_name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(REFERENCES, reference_name))
