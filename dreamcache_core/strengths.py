"""How strongly a reference enters at each layer, and in the course of sampling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import DreamCacheError
from .layers import TransformerLayer, group_of

# Factors at even distances from the beginning of sampling to its end, with straight lines between them.
Curve = tuple[float, ...]
CONSTANT: Curve = (1.0,)
MAX_STRENGTH = 2.0
# Enough of them that the straight lines between don't show.
_POINTS = 65


@dataclass(frozen=True)
class Strengths:
    """What a strength is multiplied with.

    `bottleneck`, `coarse`, `medium`, `fine`: at the layers of these groups, as `group_of` has them.
    `curve`: in the course of sampling.
    """

    bottleneck: float = 1.0
    coarse: float = 1.0
    medium: float = 1.0
    fine: float = 1.0
    curve: Curve = CONSTANT

    def at_layer(self, layer: TransformerLayer, layers: Sequence[TransformerLayer]) -> float:
        """`layers`: as in `group_of`."""
        factor: float = getattr(self, group_of(layer, layers))
        return factor


def at_progress(curve: Curve, progress: np.ndarray) -> np.ndarray:
    """`progress`: how much of sampling is done, 0…1."""
    return np.interp(progress, np.linspace(0, 1, len(curve)), curve)


def ease_in() -> Curve:
    """A curve from 0 to 1 that begins and ends level."""
    progress = np.linspace(0, 1, _POINTS)
    return tuple(map(float, progress**2 * (3 - 2 * progress)))


def ease_out() -> Curve:
    """The same from 1 to 0."""
    return ease_in()[::-1]


def read_curve(text: str) -> Curve:
    """A curve as a person writes it, `1, 0.5, 0`. Raises DreamCacheError if that's no list of strengths."""
    words = re.split(r"[\s,;]+", text.strip(" \t\n,;"))
    try:
        curve = tuple(map(float, words))
    except ValueError:
        curve = ()
    if not curve or not all(0 <= value <= MAX_STRENGTH for value in curve):
        raise DreamCacheError(
            f'"{text}" is no list of strengths: write numbers from 0 to {MAX_STRENGTH:g}, such as 1, 0.5, 0.'
        )
    return curve
