"""Masks at the resolution of what they apply to."""

from __future__ import annotations

import torch
from torch.nn import functional


def resize_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize masks (masks, height, width) to another size, float32. Each pixel is the mean of the area it covers.

    White stays exactly 1 and black exactly 0, soft edges stay soft, and any size can become any other.
    """
    return functional.interpolate(mask.float().unsqueeze(1), (height, width), mode="area").squeeze(1)
