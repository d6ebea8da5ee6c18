"""Masks in COCO's format: polygons, or runs of pixels (RLE), plain or compressed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DreamCacheError
from .source import UnusableError

_NUMBERS_OF_TRIANGLE = 6


@dataclass(frozen=True)
class Outline:
    """The mask of an object in a picture. `area`: in pixels. `left` … `bottom`: the box around it, in pixels.

    `counts`: the lengths of its runs, column by column, the first of which is outside of the object.
    """

    area: float
    left: float
    top: float
    right: float
    bottom: float
    counts: tuple[int, ...]

    def draw(self, width: int, height: int) -> np.ndarray:
        """The mask in a picture of this size: (height, width), uint8, 255 on the object."""
        inside = np.arange(len(self.counts)) % 2 * 255
        return np.repeat(inside.astype(np.uint8), self.counts).reshape(width, height).T


def read_outline(segmentation: Any, width: int, height: int) -> Outline:
    """Read the mask of an object in a picture of this size.

    Raises UnusableError if it is damaged or doesn't fit the picture; DreamCacheError if pycocotools isn't installed.
    """
    masks = import_masks()
    if isinstance(segmentation, dict):
        runs = {"size": [height, width], "counts": _runs(segmentation, width, height)}
        mask = masks.frPyObjects(runs, height, width)
    else:
        mask = masks.merge(masks.frPyObjects(_polygons(segmentation, width, height), height, width))
    left, top, box_width, box_height = map(float, masks.toBbox(mask))
    counts = tuple(_decompress(mask["counts"].decode()))
    return Outline(float(masks.area(mask)), left, top, left + box_width, top + box_height, counts)


def import_masks() -> Any:
    """The part of pycocotools that reads masks. Raises DreamCacheError if it isn't installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DreamCacheError("COCO's masks need pycocotools: run pip install pycocotools.") from error
    return mask


def _runs(segmentation: dict[str, Any], width: int, height: int) -> list[int]:
    """The lengths of the runs, checked: pycocotools reads beyond the end of runs that don't cover the picture."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise UnusableError("its mask has another size than its picture", f"{size} instead of {[height, width]}")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise UnusableError("its mask is damaged", "its runs are no whole numbers")
    if sum(counts) != width * height:
        raise UnusableError("its mask is damaged", f"its runs cover {sum(counts)} of {width * height} pixels")
    return counts


def _decompress(text: str) -> list[int]:
    """The lengths that a compressed RLE holds.

    A character has six bits from 48 on: five of a number, the lowest first, and one that says whether it goes on. The
    highest of the five is the sign. From the fourth on, numbers are differences to the number before the last.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UnusableError("its mask is damaged", "its runs are no compressed RLE")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number = shift = 0
    return counts


def _polygons(segmentation: Any, width: int, height: int) -> list[list[float]]:
    if not isinstance(segmentation, list) or not segmentation:
        raise UnusableError("it has no mask")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < _NUMBERS_OF_TRIANGLE or len(polygon) % 2:
            raise UnusableError("its mask is damaged", "a polygon lacks points")
        for limit, numbers in ((width, polygon[::2]), (height, polygon[1::2])):
            for number in numbers:
                if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                    raise UnusableError("its mask is damaged", "a polygon has points that are no numbers")
                if not -1 <= number <= limit + 1:
                    raise UnusableError("its mask has another size than its picture", "a polygon lies outside")
    return segmentation
