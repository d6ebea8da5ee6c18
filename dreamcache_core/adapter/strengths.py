"""Strengths: how strongly a reference enters at each layer, and how that changes over sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DreamCacheError
from ..io.numbers import read_numbers
from ..unet import TransformerLayer, group_of

# Factors at even distances from the start of sampling to its end; values between them are interpolated linearly.
Curve = tuple[float, ...]
CONSTANT: Curve = (1.0,)
MAX_STRENGTH = 2.0
# Enough points for a curve whose linear pieces can't be seen.
_POINTS = 65
_EASE_IN = tuple(float(3 * x**2 - 2 * x**3) for x in np.linspace(0, 1, _POINTS))


@dataclass(frozen=True)
class Strengths:
    """Factors of a strength.

    `bottleneck`, `coarse`, `medium`, `fine`: at the layers of these groups. `curve`: over sampling.
    """

    bottleneck: float = 1.0
    coarse: float = 1.0
    medium: float = 1.0
    fine: float = 1.0
    curve: Curve = CONSTANT

    def at_layer(self, layer: TransformerLayer, layers: Sequence[TransformerLayer]) -> float:
        """The factor at a layer. `layers`: all cached layers of the same U-Net."""
        factor: float = getattr(self, group_of(layer, layers))
        return factor


LIST = "list"
"""The name of the curve that `make_curve` reads from a list of values."""

CURVES: dict[str, Curve] = {"constant": CONSTANT, "ease in": _EASE_IN, "ease out": _EASE_IN[::-1]}
"""The curves that have a name: 1 throughout, from 0 to 1, and from 1 to 0, both with level ends."""


def at_progress(curve: Curve, progress: np.ndarray) -> np.ndarray:
    """The factors of a curve at points of sampling. `progress`: how much of sampling is done, 0…1."""
    return np.interp(progress, np.linspace(0, 1, len(curve)), curve)


def make_curve(name: str, values: str) -> Curve:
    """The curve of a name in CURVES, or for LIST the one in `values`, such as `1, 0.5, 0`.

    Raises DreamCacheError if it is LIST and `values` is no list of strengths.
    """
    if name != LIST:
        return CURVES[name]
    curve = read_numbers(values, 0, MAX_STRENGTH)
    if not curve:
        raise DreamCacheError(
            f'"{values}" is not a list of strengths: write numbers from 0 to {MAX_STRENGTH:g}, such as 1, 0.5, 0.'
        )
    return curve
