"""Strengths: how the strength of an injection varies over layers and over sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DreamCacheError
from ..io.numbers import parse_numbers
from ..unet import TransformerLayer, group_of

# Evenly spaced factors from the start of sampling to its end, with linear interpolation between them.
Curve = tuple[float, ...]
CONSTANT: Curve = (1.0,)
MAX_STRENGTH = 2.0
# Enough points for a curve that looks smooth.
_POINTS = 65
_EASE_IN = tuple(float(3 * x**2 - 2 * x**3) for x in np.linspace(0, 1, _POINTS))


@dataclass(frozen=True)
class Strengths:
    """Factors that an injection's strength is multiplied by.

    `bottleneck`, `coarse`, `medium`, `fine`: at the layers of these groups (`group_of`). `curve`: over sampling.
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
"""The name under which `make_curve` takes the curve from a list of values."""

CURVES: dict[str, Curve] = {"constant": CONSTANT, "ease in": _EASE_IN, "ease out": _EASE_IN[::-1]}
"""The curves with a name: constantly 1; a smooth rise from 0 to 1; a smooth fall from 1 to 0."""


def at_progress(curve: Curve, progress: np.ndarray) -> np.ndarray:
    """The factors of a curve at these points of sampling. `progress`: 0 at the start of sampling, 1 at its end."""
    return np.interp(progress, np.linspace(0, 1, len(curve)), curve)


def make_curve(name: str, values: str) -> Curve:
    """The curve with this name in CURVES. For LIST, the factors are parsed from `values`, such as `1, 0.5, 0`.

    Raises DreamCacheError if `name` is LIST and `values` is not a list of numbers from 0 to MAX_STRENGTH.
    """
    if name != LIST:
        return CURVES[name]
    curve = parse_numbers(values, 0, MAX_STRENGTH)
    if not curve:
        raise DreamCacheError(
            f'"{values}" is not a list of strengths: write numbers from 0 to {MAX_STRENGTH:g}, such as 1, 0.5, 0.'
        )
    return curve
