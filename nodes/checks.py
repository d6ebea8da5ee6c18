"""Whether the parts of a checkpoint, each of which has a wire of its own, belong together."""

from __future__ import annotations

import comfy.sd
from comfy.model_patcher import ModelPatcher

from ..dreamcache_core import DreamCacheError, UNetStructure


def check_clip(clip: comfy.sd.CLIP | None) -> None:
    if clip is None:
        raise DreamCacheError("The CLIP is missing: the checkpoint has none, so load one with Load CLIP.")


def check_prompt_width(width: int, structure: UNetStructure) -> None:
    """`width`: channels of an encoded prompt."""
    if width != structure.context_dim:
        raise DreamCacheError(
            f"The CLIP makes prompts {width} wide and the model reads {structure.context_dim}: connect the CLIP of the "
            "model's own checkpoint."
        )


def check_vae(vae: comfy.sd.VAE | None, model: ModelPatcher) -> None:
    if vae is None:
        raise DreamCacheError("The VAE is missing: the checkpoint has none, so load one with Load VAE.")
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != channels:
        raise DreamCacheError(
            f"The VAE makes latents of {vae.latent_channels} channels and the model reads {channels}: connect the VAE "
            "of the model's own checkpoint."
        )
