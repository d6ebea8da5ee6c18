"""The training recipe's augmentations, which make a different reference of the same picture in each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from PIL import Image, ImageEnhance

from ..io.images import to_image, to_tensor
from ..reference.image import cut_out, place_on_white

# Of the subject's longer side, as a fraction of the canvas.
SMALLEST_SIZE = 0.7
FLIP_PROBABILITY = 0.5

JITTER_PROBABILITY = 0.1
# The largest change of brightness, contrast and saturation, as a fraction; and of hue, as a fraction of its circle.
JITTER = 0.2
HUE_JITTER = 0.05

ERASE_PROBABILITY = 0.4
# As fractions of the canvas.
ERASED_AREA = (0.02, 0.25)
# Height to width. The recipe names none; these are the defaults of torchvision's RandomErasing.
ERASED_ASPECT = (0.3, 3.3)


def augment_reference(subject: torch.Tensor, mask: torch.Tensor, resolution: int, random: Random) -> torch.Tensor:
    """A reference of a subject: large, somewhere on a white square; perhaps mirrored, recoloured or partly erased.

    `subject`: (height, width, 3), 0…1, cropped to the subject. `mask`: (height, width), 1 on it.
    Returns (resolution, resolution, 3).
    """
    if random.random() < JITTER_PROBABILITY:
        subject = _jitter_colours(subject, random)
    subject = cut_out(subject, mask)
    if random.random() < FLIP_PROBABILITY:
        subject = subject.flip(1)
    place = random.random(), random.random()
    canvas = place_on_white(subject, resolution, random.uniform(SMALLEST_SIZE, 1), place)
    if random.random() < ERASE_PROBABILITY:
        _erase(canvas, random)
    return canvas


def _jitter_colours(picture: torch.Tensor, random: Random) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue a little, in random order."""
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: ImageEnhance.Brightness(image).enhance(random.uniform(1 - JITTER, 1 + JITTER)),
        lambda image: ImageEnhance.Contrast(image).enhance(random.uniform(1 - JITTER, 1 + JITTER)),
        lambda image: ImageEnhance.Color(image).enhance(random.uniform(1 - JITTER, 1 + JITTER)),
        lambda image: _turn_hue(image, random.uniform(-HUE_JITTER, HUE_JITTER)),
    ]
    random.shuffle(changes)
    image = to_image(picture)
    for change in changes:
        image = change(image)
    return to_tensor(image)


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Rotate the hue. `turn`: as a fraction of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + round(255 * turn)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _erase(canvas: torch.Tensor, random: Random) -> None:
    """Turn a random rectangle of the canvas white, in place."""
    side = len(canvas)
    area = random.uniform(*ERASED_AREA)
    aspect = math.exp(random.uniform(*map(math.log, ERASED_ASPECT)))
    # The largest area at the most extreme aspect still fits.
    height, width = round(side * math.sqrt(area * aspect)), round(side * math.sqrt(area / aspect))
    top, left = random.randint(0, side - height), random.randint(0, side - width)
    canvas[top : top + height, left : left + width] = 1
