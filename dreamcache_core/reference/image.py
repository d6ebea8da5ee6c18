"""The reference image as adapters are trained with it: the subject fills a white square (paper, section 4.1)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..errors import DreamCacheError
from ..unet import PIXELS_PER_LATENT

MARGIN = 0.1
"""The empty canvas on each side of the subject, as a fraction of the canvas."""


def subject_on_white(image: torch.Tensor, mask: torch.Tensor, resolution: int) -> torch.Tensor:
    """Cut out each subject and centre it with a margin on a white square of `resolution` pixels.

    `image`: (batch, height, width, 3), 0…1. `mask`: (batch, height, width), 1 on the subject. `resolution`: 0 keeps
    the subject's own size; subjects of different sizes then share the largest one's canvas.
    Returns (batch, side, side, 3). Raises DreamCacheError if a mask has no subject.
    """
    subjects = []
    for number, (picture, one) in enumerate(zip(image, mask, strict=True), start=1):
        box = subject_box(one)
        if box is None:
            raise DreamCacheError(
                f"Mask {number} is {how_bright(one)}, so there is no subject to encode: paint the subject white, or "
                "disconnect the mask to encode the full image."
            )
        subjects.append(cut_out(picture[box], one[box]))
    if not resolution:
        longest = max(max(subject.shape[:2]) for subject in subjects)
        resolution = math.ceil(longest / (1 - 2 * MARGIN) / PIXELS_PER_LATENT) * PIXELS_PER_LATENT
    return torch.stack([place_on_white(subject, resolution, size=1 - 2 * MARGIN) for subject in subjects])


def silhouette(mask: torch.Tensor, resolution: int) -> torch.Tensor:
    """The masks of the subjects in the result of `subject_on_white`: (batch, side, side), 1 on the subject."""
    black = torch.zeros_like(mask).unsqueeze(-1).expand(-1, -1, -1, 3)
    return 1 - subject_on_white(black, mask, resolution)[..., 0]


def subject_box(mask: torch.Tensor) -> tuple[slice, slice] | None:
    """The rows and columns of the subject in a mask (height, width), None if there is no subject."""
    subject = mask > 0.5
    if not subject.any():
        return None
    rows, columns = subject.any(dim=1).nonzero(), subject.any(dim=0).nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def how_bright(mask: torch.Tensor) -> str:
    """A mask without a subject in words: `black`, or how bright it is."""
    brightest = float(mask.max())
    if brightest < 0.001:
        return "black"
    # A mask of 0 and 1 that another node has read has at most 0.4% white.
    return f"at most {brightest:.1%} white" if brightest < 0.01 else f"at most {brightest:.0%} white"


def cut_out(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The subject of an image (height, width, 3) on white."""
    return torch.lerp(torch.ones_like(picture), picture, mask.unsqueeze(-1))


def place_on_white(
    picture: torch.Tensor, resolution: int, size: float, place: tuple[float, float] = (0.5, 0.5)
) -> torch.Tensor:
    """An image (height, width, 3) on a white square of `resolution` pixels.

    `size`: the image's longer side, as a fraction of the square. `place`: its position (down, right) in the free room,
    0…1; 0.5 is the middle. Returns (resolution, resolution, 3).
    """
    scale = resolution * size / max(picture.shape[:2])
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    y, x = int((resolution - height) * place[0]), int((resolution - width) * place[1])
    canvas = torch.ones(resolution, resolution, 3, dtype=picture.dtype, device=picture.device)
    canvas[y : y + height, x : x + width] = resize(picture.unsqueeze(0), height, width)[0]
    return canvas


def resize_to_area(image: torch.Tensor, resolution: int) -> torch.Tensor:
    """Resize to the area of a square of `resolution` pixels, keeping the aspect; 0 keeps the size.

    `image`: (batch, height, width, 3), 0…1. Returns the same layout with sides that are multiples of 8.
    """
    height, width = image.shape[1:3]
    scale = resolution / math.sqrt(height * width) if resolution else 1.0
    sides = (
        max(PIXELS_PER_LATENT, round(side * scale / PIXELS_PER_LATENT) * PIXELS_PER_LATENT) for side in (height, width)
    )
    return resize(image, *sides)


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize (batch, height, width, channels), 0…1, with antialiasing."""
    if tuple(image.shape[1:3]) == (height, width):
        return image
    channels_first = image.movedim(-1, 1)
    resized = functional.interpolate(channels_first, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).movedim(1, -1)
