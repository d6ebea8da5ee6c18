"""DreamCache Load Reference Cache: a file of the `dreamcache_references` models folder becomes a reference cache."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import folder_paths
from comfy_api.latest import io
from typing_extensions import override

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
            description="Loads a reference that was saved, without its picture and without encoding it.",
            search_aliases=["import reference", "load embeds"],
            inputs=[
                io.Combo.Input(
                    "reference_name",
                    options=folder_paths.get_filename_list(REFERENCES),
                    tooltip="A file of models/dreamcache_references, encoded with the family of your model.",
                )
            ],
            outputs=[
                ReferenceCacheType.Output("reference_cache", tooltip="For Apply DreamCache."),
                io.String.Output(
                    "info",
                    tooltip="What the file holds: references, base model, precision, layers, and how it was encoded.",
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
    def fingerprint_inputs(cls, reference_name: str) -> float:
        return _path(reference_name).stat().st_mtime

    @classmethod
    @override
    def execute(cls, reference_name: str) -> io.NodeOutput:
        # Where Encode Reference puts its own, so that the two can be combined.
        device = comfy.model_management.intermediate_device()
        file = load_references(_path(reference_name), device)
        return io.NodeOutput(file.references, file.description)


def _path(reference_name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(REFERENCES, reference_name))
