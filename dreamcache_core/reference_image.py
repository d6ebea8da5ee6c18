"""Making the reference look as it did in training: a subject that fills a white square (paper, section 4.1)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from .errors import DreamCacheError

# Empty canvas left on each side of the subject, as a fraction of the canvas.
MARGIN = 0.1
# The autoencoder of SD1.x and SD2.x works on squares of this many pixels.
LATENT_PIXELS = 8


def subject_on_white(image: torch.Tensor, mask: torch.Tensor, resolution: int) -> torch.Tensor:
    """Cut each subject out, centre it with a margin on a white square, and resize that to `resolution` pixels.

    `image`: (batch, height, width, 3), 0…1. `mask`: (batch, height, width), 1 on the subject.
    `resolution` 0 keeps the subject's own size. Several subjects of different sizes share the largest one's canvas.
    Returns (batch, side, side, 3). Raises DreamCacheError if a mask holds no subject.
    """
    boxes = [_bounding_box(one, number) for number, one in enumerate(mask, start=1)]
    if not resolution:
        longest = max(max(bottom - top, right - left) for top, bottom, left, right in boxes)
        resolution = math.ceil(longest / (1 - 2 * MARGIN) / LATENT_PIXELS) * LATENT_PIXELS
    white = torch.lerp(torch.ones_like(image), image, mask.unsqueeze(-1))
    canvases = []
    for picture, (top, bottom, left, right) in zip(white, boxes, strict=True):
        subject = picture[top:bottom, left:right]
        scale = resolution * (1 - 2 * MARGIN) / max(subject.shape[:2])
        height, width = (max(1, round(length * scale)) for length in subject.shape[:2])
        canvas = torch.ones(resolution, resolution, 3, dtype=image.dtype, device=image.device)
        y, x = (resolution - height) // 2, (resolution - width) // 2
        canvas[y : y + height, x : x + width] = _resize(subject.unsqueeze(0), height, width)[0]
        canvases.append(canvas)
    return torch.stack(canvases)


def resize_to_area(image: torch.Tensor, resolution: int) -> torch.Tensor:
    """Resize to the area of a square of `resolution` pixels, keeping the aspect; 0 keeps the size.

    `image`: (batch, height, width, 3), 0…1. Returns the same with sides that are multiples of 8.
    """
    height, width = image.shape[1:3]
    scale = resolution / math.sqrt(height * width) if resolution else 1.0
    sides = (max(LATENT_PIXELS, round(side * scale / LATENT_PIXELS) * LATENT_PIXELS) for side in (height, width))
    return _resize(image, *sides)


def _bounding_box(mask: torch.Tensor, number: int) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right; half-open) of the mask's subject."""
    subject = mask > 0.5
    if not subject.any():
        raise DreamCacheError(
            f"Mask {number} is black, so there is no subject to encode: paint the subject white, or disconnect the "
            "mask to encode the whole image."
        )
    rows, columns = subject.any(dim=1).nonzero(), subject.any(dim=0).nonzero()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if tuple(image.shape[1:3]) == (height, width):
        return image
    channels_first = image.movedim(-1, 1)
    resized = functional.interpolate(channels_first, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).movedim(1, -1)
