"""Pictures as Pillow has them, and as tensors (height, width, channels) of 0…1."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import DreamCacheError


def read_picture(read: Callable[[], bytes], what: str) -> Image.Image:
    """A picture in colours, upright, on white where it is transparent.

    `read`: gives the bytes of its file. Raises DreamCacheError if they are no picture's, and calls it `what`.
    """
    image = _decode(read, what)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(read: Callable[[], bytes], what: str, size: tuple[int, int]) -> Image.Image:
    """The same in grey, resized to (width, height)."""
    return _decode(read, what).convert("L").resize(size, Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(height, width, 3) of an RGB picture, (height, width) of a grey one; float32."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """RGB of (height, width, 3), grey of (height, width). What `to_tensor` gave comes back as it was."""
    # Rounded, not cut off: 255 · (k / 255) may be a little less than k.
    levels = (tensor.detach().float().cpu().clamp(0, 1) * 255).round()
    return Image.fromarray(levels.to(torch.uint8).numpy())


def _decode(read: Callable[[], bytes], what: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(read())))
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file.
        raise DreamCacheError(f"{what} cannot be read: it is damaged or not an image.") from error
