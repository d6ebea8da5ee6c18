"""Checks of tensors that come from outside: a NaN that enters unnoticed turns a picture black."""

from __future__ import annotations

import torch

from ..errors import DreamCacheError

VAE_ADVICE = "the VAE overflows, as SDXL's own does in float16; use a VAE made for float16, or ComfyUI's --fp32-vae"
"""What to do about latents that contain NaN, to end a sentence."""


def check_finite(tensor: torch.Tensor, what: str, advice: str) -> None:
    """Raise DreamCacheError if a tensor contains NaN or infinity. `what`: the tensor in words. `advice`: what to do."""
    # float8 and others of one byte have no isfinite.
    values = tensor.float() if tensor.element_size() == 1 else tensor
    if not torch.isfinite(values).all():
        raise DreamCacheError(f"{what} contains NaN or infinity: {advice}.")
