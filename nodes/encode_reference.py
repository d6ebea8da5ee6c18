"""DreamCache Encode Reference: pictures of a subject become a reference cache."""

from __future__ import annotations

from dataclasses import replace

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core import (
    DreamCacheError,
    make_thumbnail,
    resize_mask,
    resize_to_area,
    silhouette,
    subject_on_white,
    to_image,
)
from . import patching
from .checks import check_clip, check_prompt_width, check_vae
from .pictures import in_colours, masks_of
from .types import CATEGORY, ReferenceCacheType

# The caching pass of the paper (section 3.1): almost no noise, and nothing known of the subject but its picture.
TIMESTEP = 1
PROMPT = ""


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
        structure = patching.structure_of(model)
        reference, subject = _prepare(image, mask, resolution)
        check_clip(clip)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
        check_prompt_width(conditioning[0][0].shape[-1], structure)
        check_vae(vae, model)
        latent = vae.encode(reference)
        noise = comfy.sample.prepare_noise(latent, seed)
        cache = patching.encode_reference(model, latent, noise, conditioning, timestep, PROMPT)
        if subject_only and subject is not None:
            cache = replace(cache, subject=resize_mask(subject, *cache.latent_size))
        thumbnails = tuple(make_thumbnail(to_image(picture)) for picture in reference)
        return io.NodeOutput(replace(cache, source=replace(patching.weights_of(model), thumbnails=thumbnails)))


def _prepare(
    image: torch.Tensor, mask: torch.Tensor | None, resolution: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is encoded, (batch, height, width, 3), and where in it the subjects are, (batch, height, width)."""
    if not len(image):
        raise DreamCacheError("The image batch is empty, so there is no reference to encode: connect an image.")
    image = in_colours(image)
    if mask is None:
        return resize_to_area(image, resolution), None
    masks = len(mask.reshape(-1, *mask.shape[-2:]))
    if masks not in (1, len(image)):
        raise DreamCacheError(
            f"There are {masks} masks for {len(image)} images: connect one mask for all, or one for each image."
        )
    mask = masks_of(image, mask)
    return subject_on_white(image, mask, resolution), silhouette(mask, resolution)
