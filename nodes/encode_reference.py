"""DreamCache Encode Reference: images of a subject become a reference cache."""

from __future__ import annotations

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from .host.reference import TIMESTEP, encode_reference
from .schema import CATEGORY, ReferenceCacheType


class DreamCacheEncodeReference(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheEncodeReference",
            display_name="DreamCache Encode Reference",
            category=CATEGORY,
            description="Reads a picture of your subject with the model itself, and caches what the model saw in it.",
            search_aliases=["personalize", "subject reference", "reference image", "ip adapter"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will draw the picture: SD1.x, SD2.x or SDXL."),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Image.Input(
                    "image", tooltip="Your subject, best alone and large in the picture. A batch is several references."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of that model. It encodes an empty prompt."),
                io.Int.Input(
                    "timestep",
                    default=TIMESTEP,
                    min=0,
                    max=999,
                    tooltip="How noisy the reference is when the model reads it. Adapters are trained for 1.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    # A new seed after each run would encode the same reference again and again, to no effect.
                    control_after_generate=False,
                    tooltip="Of that noise. It matters little at timestep 1.",
                    advanced=True,
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="The reference is resized to the area of a square of so many pixels, keeping its "
                    "proportions. Take the size that the model was trained at. 0 keeps the picture's own size.",
                    advanced=True,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White on your subject: it is cut out, centred on white and cropped with a margin, which "
                    "is how adapters were trained. One mask, or one for each picture.",
                ),
                io.Boolean.Input(
                    "subject_only",
                    default=False,
                    optional=True,
                    tooltip="Let only what the mask has of the reference be read, and nothing of the white around it. "
                    "That is faster, too. Without a mask it does nothing.",
                    advanced=True,
                ),
            ],
            outputs=[
                ReferenceCacheType.Output(
                    "reference_cache", tooltip="What the model saw in your subject, for Apply DreamCache."
                )
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
        return io.NodeOutput(
            encode_reference(
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
        )
