"""What comes from other nodes and from prompts: images and masks in the layout that this pack uses, and numbers."""

from __future__ import annotations

import math
from functools import wraps
from typing import Any

import torch
from comfy_api.latest import io
from torch.nn import functional

from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.io.finite import check_finite
from ...dreamcache_core.io.images import check_aspect


def to_rgb(image: torch.Tensor, what: str = "image") -> torch.Tensor:
    """Images (batch, height, width, channels) as RGB, (batch, height, width, 3): drops alpha, repeats greyscale.

    `what`: the input's name. Raises DreamCacheError if an image contains NaN.
    """
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, -1, 3)
    return _from_0_to_1(rgb, what)


def as_masks(mask: torch.Tensor) -> torch.Tensor:
    """A MASK with any number of leading dimensions as (masks, height, width)."""
    return mask.reshape(-1, *mask.shape[-2:])


def as_region(mask: torch.Tensor | None) -> torch.Tensor | None:
    """An optional MASK as the region of an Injection, (masks, height, width), 0…1.

    Raises DreamCacheError if it contains NaN.
    """
    return None if mask is None else _from_0_to_1(as_masks(mask), "region")


def check_masks(mask: torch.Tensor, images: int, what: str = "images", *, one_for_all: bool = True) -> None:
    """Raise DreamCacheError unless there is one mask for each image, or one for all images.

    `images`: their number. `what`: the images in words, in the plural. `one_for_all`: whether one mask for all is
    allowed.
    """
    masks = len(as_masks(mask))
    if masks == images or (masks == 1 and one_for_all):
        return
    one = what.removesuffix("s")
    needed = f"one mask for all, or one for each {one}" if one_for_all else f"one mask for each {one}"
    raise DreamCacheError(f"There are {masks} masks for {images} {what}: connect {needed}.")


def fit_masks(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Masks resized to the images, with one mask for each image: (batch, height, width), 0…1.

    `image`: (batch, height, width, channels). `mask`: one mask, or one for each image, of any size. Raises
    DreamCacheError if it contains NaN, or has another aspect than the images.
    """
    mask = _from_0_to_1(as_masks(mask), "mask").to(image)
    if mask.min() != mask.max():  # A mask of a single level has no shape.
        check_aspect((mask.shape[2], mask.shape[1]), (image.shape[2], image.shape[1]), "The mask")
    mask = functional.interpolate(mask.unsqueeze(1), size=image.shape[1:3], mode="bilinear").squeeze(1)
    return mask.expand(len(image), -1, -1)


def check_numbers(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The same node, which refuses NaN and infinity: a prompt's JSON may hold them, and NaN passes all limits."""
    execute = node.execute

    @wraps(execute)
    def execute_checked(cls: type[io.ComfyNode], *arguments: Any, **inputs: Any) -> Any:
        for of_node, value in inputs.items():
            if isinstance(value, float) and not math.isfinite(value):
                name = node.GET_SCHEMA().display_name
                raise DreamCacheError(f"{of_node} of {name} is {value}: enter a number, or connect another node.")
        return execute.__func__(cls, *arguments, **inputs)

    node.execute = classmethod(execute_checked)
    return node


def _from_0_to_1(tensor: torch.Tensor, what: str) -> torch.Tensor:
    check_finite(tensor, f"The {what}", f"change the node that makes the {what}")
    return tensor.clamp(0, 1)
