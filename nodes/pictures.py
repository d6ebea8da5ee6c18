"""Images and masks, which other nodes hand on in several forms, in one form."""

from __future__ import annotations

import torch
from torch.nn import functional


def in_colours(image: torch.Tensor) -> torch.Tensor:
    """Colours without alpha, and grey as colours: (batch, height, width, 3)."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, -1, 3)


def masks_of(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Masks as large as the images, and one for each of them if there is one for all: (batch, height, width)."""
    mask = mask.to(image).reshape(-1, 1, *mask.shape[-2:])
    mask = functional.interpolate(mask, size=image.shape[1:3], mode="bilinear").squeeze(1)
    return mask.expand(len(image), -1, -1)
