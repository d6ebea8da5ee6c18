"""Images and masks from other nodes, which come in several layouts, in one."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...dreamcache_core.errors import DreamCacheError


def in_colours(image: torch.Tensor) -> torch.Tensor:
    """Images as RGB, (batch, height, width, 3): alpha is dropped, and grey repeated."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, -1, 3)


def as_masks(mask: torch.Tensor) -> torch.Tensor:
    """A MASK as (masks, height, width), whatever dimensions it has before the last two."""
    return mask.reshape(-1, *mask.shape[-2:])


def as_region(mask: torch.Tensor | None) -> torch.Tensor | None:
    """An optional MASK as (masks, height, width)."""
    return None if mask is None else as_masks(mask)


def check_masks(mask: torch.Tensor, images: int, what: str = "images", *, one_for_all: bool = True) -> None:
    """Raise DreamCacheError unless there is one mask for each of `images` images, or one for all of them.

    `what`: the images in words. `one_for_all`: whether a single mask is allowed.
    """
    masks = len(as_masks(mask))
    if masks == images or (masks == 1 and one_for_all):
        return
    one = what.removesuffix("s")
    needed = f"one mask for all, or one for each {one}" if one_for_all else f"one mask for each {one}"
    raise DreamCacheError(f"There are {masks} masks for {images} {what}: connect {needed}.")


def masks_of(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Masks resized to the images, one for each: (batch, height, width)."""
    mask = as_masks(mask).to(image).unsqueeze(1)
    mask = functional.interpolate(mask, size=image.shape[1:3], mode="bilinear").squeeze(1)
    return mask.expand(len(image), -1, -1)
