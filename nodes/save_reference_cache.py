"""DreamCache Save Reference Cache: a reference cache becomes a file to keep and to share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from comfy_api.latest import io, ui
from PIL import ImageOps
from typing_extensions import override

from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.io.images import to_tensor
from ..dreamcache_core.reference.cache import ReferenceCache
from ..dreamcache_core.reference.contents import Precision
from ..dreamcache_core.reference.file import save_references
from ..dreamcache_core.reference.thumbnails import THUMBNAIL_SIZE
from ..dreamcache_core.unet import DEFAULT_STAGES, STAGES
from .host.folders import REFERENCES, is_inside, models_folder, outside_message, save_numbered
from .host.node_text import show_text
from .schema import CATEGORY, ReferenceCacheType

LAYERS = {"middle and decoder": DEFAULT_STAGES, "all": STAGES}
_EXAMPLE = "my_subject"


class DreamCacheSaveReferenceCache(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheSaveReferenceCache",
            display_name="DreamCache Save Reference Cache",
            category=CATEGORY,
            description="Saves an encoded reference, to reuse it without its image or to share it.",
            search_aliases=["export reference", "save embeds"],
            inputs=[
                ReferenceCacheType.Input(
                    "reference_cache", tooltip="From DreamCache Encode Reference or DreamCache Combine References."
                ),
                io.String.Input(
                    "filename_prefix",
                    default=_EXAMPLE,
                    tooltip="Start of the file name in models/dreamcache_references. It may contain folders, such as "
                    "cups/my_subject. A number is added, so no file is overwritten.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(get_args(Precision)),
                    default="float16",
                    tooltip="float16: almost exact, 6 MB for a 512×512 reference. float8: half the size; the node "
                    "shows the error.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default="middle and decoder",
                    tooltip="Which layers to save. Keep the default; choose all only for an adapter that also uses "
                    "encoder layers.",
                    advanced=True,
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        # None: the name comes from another node.
        folder = models_folder(REFERENCES)
        if filename_prefix is None or is_inside(folder, filename_prefix):
            return True
        return outside_message(folder, filename_prefix, _EXAMPLE)

    @classmethod
    @override
    def execute(
        cls, reference_cache: ReferenceCache, filename_prefix: str, precision: Precision, layers: str
    ) -> io.NodeOutput:
        folder = models_folder(REFERENCES)
        if not is_inside(folder, filename_prefix):
            raise DreamCacheError(outside_message(folder, filename_prefix, _EXAMPLE))
        saved = []

        def write(path: Path) -> None:
            saved.append(save_references(path, reference_cache, precision, LAYERS[layers]))

        path = save_numbered(folder, filename_prefix, write)
        (file,) = saved
        text = (
            f"Saved {path.relative_to(folder).as_posix()}, {path.stat().st_size / 1e6:,.1f} MB, "
            f"{file.error_description}."
        )
        show_text(cls, text)
        return io.NodeOutput(ui={"text": [text], **_preview(cls, reference_cache)})


def _preview(node: type[io.ComfyNode], references: ReferenceCache) -> dict[str, Any]:
    """The thumbnails of references, as a node shows pictures on itself."""
    pictures = [image for image in references.images if image]
    square = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    thumbnails = [to_tensor(ImageOps.pad(picture, square, color="white")) for picture in pictures]
    return ui.PreviewImage(torch.stack(thumbnails), cls=node).as_dict() if thumbnails else {}
