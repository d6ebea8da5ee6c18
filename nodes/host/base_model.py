"""The base model in the graph: its structure, its weights, and whether the parts of its checkpoint belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...dreamcache_core.adapter.provenance import hash_weights
from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.io.finite import VAE_ADVICE, check_finite
from ...dreamcache_core.reference.cache import Source
from ...dreamcache_core.unet import UNetStructure, read_structure
from .loading import loading


def load_checkpoint(path: Path) -> tuple[ModelPatcher, comfy.sd.CLIP | None, comfy.sd.VAE | None]:
    """The MODEL, the CLIP and the VAE of a checkpoint. Raises DreamCacheError if ComfyUI can't load it."""
    with loading(path, "a checkpoint"):
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path))
    return model, clip, vae


def structure_of(model: ModelPatcher) -> UNetStructure:
    """The structure of a MODEL's U-Net. Raises DreamCacheError for a model that DreamCache doesn't work on."""
    return read_structure(model.model.diffusion_model, type(model.model).__name__)


def weights_of(model: ModelPatcher) -> Source:
    """The weights of a MODEL's U-Net: those of its file, and whether LoRAs or other patches are on them."""
    weights = model.get_key_patches("diffusion_model.")
    return Source(
        base_hash=hash_weights({name: versions[0][0] for name, versions in weights.items()}),
        patched=any(len(versions) > 1 for versions in weights.values()),
    )


def loras_of(model: ModelPatcher) -> str | None:
    """What tells the LoRAs and other patches on a MODEL's U-Net from others, None if there are none.

    12 hexadecimal digits, the same in every process: they depend on the patches' weights and strengths.
    """
    digest = hashlib.sha256()
    patches = {name: on for name, on in model.patches.items() if name.startswith("diffusion_model.")}
    for name in sorted(patches):
        for piece in (name, *_pieces(patches[name])):
            digest.update(piece.encode())
    return digest.hexdigest()[:12] if patches else None


def _pieces(patch: Any) -> Iterator[str]:
    """The weights and the numbers in a patch, which is nested differently for each kind of LoRA."""
    if isinstance(patch, torch.Tensor):
        yield hash_weights({"": patch})
    elif isinstance(patch, list | tuple):
        for part in patch:
            yield from _pieces(part)
    elif hasattr(patch, "weights"):
        yield from _pieces(patch.weights)
    elif isinstance(patch, str | int | float):
        yield repr(patch)


def check_clip(clip: comfy.sd.CLIP | None) -> None:
    """Raise DreamCacheError if there is no CLIP."""
    if clip is None:
        raise DreamCacheError("The checkpoint has no CLIP: load one with Load CLIP.")


def check_prompt_width(width: int, structure: UNetStructure) -> None:
    """Raise DreamCacheError unless the U-Net reads prompts of this width. `width`: channels of an encoded prompt."""
    if width != structure.context_dim:
        raise DreamCacheError(
            f"The CLIP encodes prompts to {width} channels, but the model needs {structure.context_dim}: connect the "
            "CLIP of the model's own checkpoint."
        )


def check_vae(vae: comfy.sd.VAE | None, model: ModelPatcher) -> None:
    """Raise DreamCacheError unless there is a VAE whose latents the model reads."""
    if vae is None:
        raise DreamCacheError("The checkpoint has no VAE: load one with Load VAE.")
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != channels:
        raise DreamCacheError(
            f"The VAE makes latents of {vae.latent_channels} channels, but the model needs {channels}: connect the "
            "VAE of the model's own checkpoint."
        )


def encode_images(vae: comfy.sd.VAE, images: torch.Tensor) -> torch.Tensor:
    """The latents of images (batch, height, width, 3), 0…1. Raises DreamCacheError if the VAE makes NaN of them."""
    latents = vae.encode(images)
    check_finite(latents, "What the VAE makes of the image", VAE_ADVICE)
    return latents


def decode_latents(vae: comfy.sd.VAE, latents: torch.Tensor) -> torch.Tensor:
    """The images of latents, (batch, height, width, 3), 0…1, float32, on the CPU.

    Raises DreamCacheError if the latents contain NaN, or if the VAE makes NaN of them.
    """
    check_finite(latents, "What the model has sampled", "start ComfyUI with --force-fp32, or check model and LoRAs")
    images = vae.decode(latents).float().cpu()
    check_finite(images, "What the VAE makes of the latent", VAE_ADVICE)
    return images
