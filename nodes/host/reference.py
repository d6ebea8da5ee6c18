"""Encoding references: images of a subject become a reference cache."""

from __future__ import annotations

from dataclasses import replace

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.io.images import to_image
from ...dreamcache_core.reference.cache import ReferenceCache
from ...dreamcache_core.reference.image import resize_to_area, silhouette, subject_on_white
from ...dreamcache_core.reference.masks import resize_mask
from ...dreamcache_core.reference.thumbnails import make_thumbnail
from .base_model import check_clip, check_prompt_width, check_vae, encode_images, structure_of, weights_of
from .inputs import check_masks, fit_masks, to_rgb
from .patching.caching_pass import record_references

# The caching pass of the paper (section 3.1): almost no noise, and no prompt.
TIMESTEP = 1
PROMPT = ""


def encode_reference(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    clip: comfy.sd.CLIP,
    image: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    timestep: int = TIMESTEP,
    seed: int = 0,
    resolution: int = 512,
    subject_only: bool = False,
) -> ReferenceCache:
    """Encode a batch of images, (batch, height, width, channels), 0…1, with the model itself.

    `mask`: (masks, height, width), 1 on the subject, which is cut out and centred on white. `timestep`, `seed`: of the
    noise in the caching pass. `resolution`: side in pixels of a square of the reference's area, 0 for the image's own.
    `subject_only`: only the subject's tokens are attended to. Raises DreamCacheError if model, VAE and CLIP don't
    belong together, if image and mask don't, or if NaN comes in.
    """
    structure = structure_of(model)
    reference, subject = _prepare(image, mask, resolution)
    check_clip(clip)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    check_prompt_width(conditioning[0][0].shape[-1], structure)
    check_vae(vae, model)
    latent = encode_images(vae, reference)
    noise = comfy.sample.prepare_noise(latent, seed)
    thumbnails = tuple(make_thumbnail(to_image(picture)) for picture in reference)
    return record_references(
        model,
        latent,
        noise,
        conditioning,
        timestep,
        PROMPT,
        source=replace(weights_of(model), thumbnails=thumbnails),
        subject=resize_mask(subject, *latent.shape[2:]) if subject_only and subject is not None else None,
    )


def _prepare(
    image: torch.Tensor, mask: torch.Tensor | None, resolution: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The images to encode, (batch, height, width, 3), and the masks of their subjects, (batch, height, width)."""
    if not len(image):
        raise DreamCacheError("The image batch is empty: connect an image.")
    image = to_rgb(image)
    if mask is None:
        return resize_to_area(image, resolution), None
    check_masks(mask, len(image))
    mask = fit_masks(image, mask)
    return subject_on_white(image, mask, resolution), silhouette(mask, resolution)
