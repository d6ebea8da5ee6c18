"""Masks, as large as what they are of."""

from __future__ import annotations

import torch
from torch.nn import functional


def resize_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Masks (masks, height, width) of any size in another, float32: each pixel is the mean of what it lies on.

    So white stays 1 and black 0 to the bit, soft edges stay soft, and sizes need not divide one another.
    """
    return functional.interpolate(mask.float().unsqueeze(1), (height, width), mode="area").squeeze(1)
