"""Images: decoding files, and conversion between Pillow and tensors (height, width, channels), 0…1."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import DreamCacheError


def read_image(read: Callable[[], bytes], what: str) -> Image.Image:
    """Decode an image as RGB, turned upright by its EXIF orientation, with white behind transparent parts.

    `read`: returns the bytes of the file. `what`: the image in words, for the message. Raises DreamCacheError if the
    file can't be read or decoded.
    """
    image = _decode(read, what)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(read: Callable[[], bytes], what: str, size: tuple[int, int]) -> Image.Image:
    """Decode a mask in greyscale, and resize it to `size`, (width, height). Otherwise like `read_image`."""
    return _decode(read, what).convert("L").resize(size, Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image → (height, width, 3), greyscale image → (height, width); float32, 0…1."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """(height, width, 3) → RGB image, (height, width) → greyscale image. The exact inverse of `to_tensor`."""
    # Rounded, not truncated: 255 · (k / 255) can be slightly less than k.
    levels = (tensor.detach().float().cpu().clamp(0, 1) * 255).round()
    return Image.fromarray(levels.to(torch.uint8).numpy())


def planar(images: torch.Tensor) -> torch.Tensor:
    """The same images, (…, height, width, channels), laid out in memory channel by channel.

    The layout decides the order of sums in a VAE's convolutions, and so the last bits of its latents.
    """
    return images.movedim(-1, -3).contiguous().movedim(-3, -1)


def _decode(read: Callable[[], bytes], what: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(read())))
    except Exception as error:  # Pillow's decoders raise many types for a damaged file.
        raise DreamCacheError(f"{what} cannot be read: it is damaged or not an image.") from error
