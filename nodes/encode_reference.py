"""DreamCache Encode Reference: images of a subject become a reference cache."""

from __future__ import annotations

import base64

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.reference.cache import ReferenceCache
from .host.reference import TIMESTEP, encode_reference
from .schema import CATEGORY, ReferenceCacheType

MOST_SHOWN = 8
"""Thumbnails on the node."""


class DreamCacheEncodeReference(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheEncodeReference",
            display_name="DreamCache Encode Reference",
            category=CATEGORY,
            description="Encodes an image of your subject with the model itself. Connect the result to Apply "
            "DreamCache.",
            search_aliases=["personalize", "subject reference", "reference image", "ip adapter"],
            inputs=[
                io.Model.Input("model", tooltip="The model you generate with: SD1.x, SD2.x or SDXL."),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Image.Input(
                    "image",
                    tooltip="An image of your subject, ideally alone and large in the frame. Each image of a "
                    "batch becomes a reference.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of that model. The reference is encoded with an empty prompt."),
                io.Int.Input(
                    "timestep",
                    default=TIMESTEP,
                    min=0,
                    max=999,
                    tooltip="The timestep at which the reference is encoded; a higher one adds more noise. Keep 1, "
                    "which adapters are trained for.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    # A new seed after each run would encode the same reference again and again, to no effect.
                    control_after_generate=False,
                    tooltip="Seed of that noise. At timestep 1 it makes almost no difference.",
                    advanced=True,
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Set this to the size the model was trained at. The reference is resized to the area of a "
                    "square with this side, keeping its proportions. 0 keeps the original size.",
                    advanced=True,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Paint your subject white. It is cut out, centred on white and cropped with a margin, as "
                    "in training. Connect one mask, or one for each image.",
                ),
                io.Boolean.Input(
                    "subject_only",
                    default=False,
                    optional=True,
                    tooltip="Use only the masked part of the reference and ignore the white around it. This is also "
                    "faster. Has no effect without a mask.",
                    advanced=True,
                ),
            ],
            outputs=[
                ReferenceCacheType.Output("reference_cache", tooltip="The encoded reference, for Apply DreamCache.")
            ],
        )

    @classmethod
    @override
    def execute(
        cls,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        image: torch.Tensor,
        clip: comfy.sd.CLIP,
        timestep: int,
        seed: int,
        resolution: int,
        mask: torch.Tensor | None = None,
        subject_only: bool = False,
    ) -> io.NodeOutput:
        cache = encode_reference(
            model,
            vae,
            clip,
            image,
            mask,
            timestep=timestep,
            seed=seed,
            resolution=resolution,
            subject_only=subject_only,
        )
        return io.NodeOutput(cache, ui={"dreamcache_thumbnails": _shown(cache)})


def _shown(cache: ReferenceCache) -> list[str]:
    """Thumbnails of the first references as they were encoded: JPEG in base64, for web/js/encode_reference.js."""
    thumbnails = [thumbnail for batch in cache.batches if batch.source for thumbnail in batch.source.thumbnails]
    return [base64.b64encode(thumbnail).decode() for thumbnail in thumbnails[:MOST_SHOWN]]
