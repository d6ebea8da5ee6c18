"""A training's losses: as a picture, and thinned out for one that is drawn elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 40
_FONT_SIZE = 15
_SEEN = 0.98
"""The share of single losses that a picture shows at their height."""
_SINGLE, _SMOOTH, _LINES = "#b8cbe6", "#1f5fbf", "#dddddd"


@dataclass(frozen=True)
class LossCurve:
    """Losses of some of a training's steps, at most as many as were asked for.

    `total`: how many steps there are. `steps`: the numbers of these, from 1 on. `losses`: theirs. `means`: those of
    their neighbourhoods. `low`, `high`: where nearly all of them lie. What isn't finite is None.
    """

    total: int
    steps: tuple[int, ...]
    losses: tuple[float | None, ...]
    means: tuple[float | None, ...]
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}


def read_loss_curve(losses: Sequence[float], first: int = 1, last: int | None = None, points: int = 512) -> LossCurve:
    """The losses of the steps from `first` to `last`, which is the last one if it isn't given, both with."""
    total = len(losses)
    first, last = max(first, 1), total if last is None else min(last, total)
    numbers = np.linspace(first, last, min(points, max(last - first + 1, 0))).round().astype(int)
    chosen, means = np.asarray(losses, dtype=np.float64)[numbers - 1], _smooth(losses)[numbers - 1]
    # A few losses that are far off don't flatten the rest.
    finite = chosen[np.isfinite(chosen)]
    low, high = (float(np.quantile(finite, share)) for share in (1 - _SEEN, _SEEN)) if len(finite) else (None, None)
    return LossCurve(total, tuple(map(int, numbers)), _finite(chosen), _finite(means), low, high)


def _finite(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(value if np.isfinite(value) else None for value in values.tolist())


def draw_loss_curve(losses: Sequence[float], steps: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """The loss of each step so far, of all `steps`: pale as it was, and dark the mean of its neighbourhood.

    A single loss says little, since it depends mostly on its timesteps. Losses that aren't finite leave gaps.
    """
    width, height = size
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE)
    box = (_MARGIN + 15, _MARGIN, width - _MARGIN // 2, height - _MARGIN)
    left, top, right, bottom = box
    smooth = _smooth(losses)
    # Single losses that are far off don't flatten the rest.
    finite = [loss for loss in losses if math.isfinite(loss)]
    highest = float(max(np.quantile(finite, _SEEN), np.nanmax(smooth))) * 1.05 if finite else 1.0

    def place(number: int, loss: float) -> tuple[float, float]:
        x = left + (right - left) * (number + 1) / steps
        return x, bottom - (bottom - top) * min(loss / highest, 1.0)

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        draw.line((left, y, right, y), _LINES)
        draw.text((left - 5, y), f"{highest * part / 4:.2g}", "black", font, anchor="rm")
    draw.text((left, bottom + 8), "0", "black", font, anchor="lt")
    draw.text((right, bottom + 8), f"step {steps:,}", "black", font, anchor="rt")
    for values, colour, thickness in ((losses, _SINGLE, 1), (smooth, _SMOOTH, 3)):
        # At most as many points as there are pixels.
        stride = max(1, len(values) // (right - left))
        points = [(number, values[number]) for number in range(0, len(values), stride)]
        points += [(len(values) - 1, values[-1])] if finite else []
        for is_finite, run in itertools.groupby(points, lambda point: math.isfinite(point[1])):
            if is_finite:
                draw.line([place(*point) for point in run], colour, thickness, joint="curve")
    title = f"loss {smooth[-1]:.4f} after step {len(losses):,}" if finite else "loss"
    draw.text((left, top - 12), title, "black", font, anchor="lb")
    return image


def _smooth(losses: Sequence[float]) -> np.ndarray:
    """The mean of the finite losses around each step, a twentieth of all; NaN where there are none."""
    values = np.asarray(losses, dtype=np.float64)
    reach = max(1, len(values) // 40)
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0], np.cumsum(each)]) for each in (np.where(finite, values, 0.0), finite))
    numbers = np.arange(len(values))
    first, last = np.maximum(numbers - reach, 0), np.minimum(numbers + reach + 1, len(values))
    with np.errstate(invalid="ignore"):  # Where none is finite: NaN.
        return (sums[last] - sums[first]) / (counts[last] - counts[first])
