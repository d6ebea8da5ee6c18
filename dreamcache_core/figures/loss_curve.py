"""A training's loss curve: plotted as an image, or thinned out for a plot in the front end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# In pixels.
_MARGIN = 40
_FONT_SIZE = 15
# The quantile of the losses that bounds the plotted range, so that a few outliers don't flatten the curve.
_RANGE = 0.98
_SINGLE, _SMOOTH, _GRID = "#b8cbe6", "#1f5fbf", "#dddddd"


@dataclass(frozen=True)
class LossCurve:
    """The losses of selected steps of a training. The fields are the keys of its JSON.

    `total`: number of steps so far. `steps`: the selected steps, counted from 1. `losses`: their losses. `means`: their
    moving means. `low`, `high`: the range of the losses without outliers. Values that aren't finite are None.
    """

    total: int
    steps: tuple[int, ...]
    losses: tuple[float | None, ...]
    means: tuple[float | None, ...]
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}


def make_loss_curve(losses: Sequence[float], first: int = 1, last: int | None = None, points: int = 512) -> LossCurve:
    """Select at most `points` evenly spaced steps from `first` to `last`, inclusive; None: to the end of the losses.

    `losses`: of all steps so far.
    """
    total = len(losses)
    first, last = max(first, 1), total if last is None else min(last, total)
    numbers = np.linspace(first, last, min(points, max(last - first + 1, 0))).round().astype(int)
    selected, means = np.asarray(losses, dtype=np.float64)[numbers - 1], _moving_mean(losses)[numbers - 1]
    finite = selected[np.isfinite(selected)]
    low, high = (float(np.quantile(finite, share)) for share in (1 - _RANGE, _RANGE)) if len(finite) else (None, None)
    return LossCurve(total, tuple(map(int, numbers)), _finite(selected), _finite(means), low, high)


def _finite(values: np.ndarray) -> tuple[float | None, ...]:
    """The values, None in place of NaN and infinity, which JSON lacks."""
    return tuple(value if np.isfinite(value) else None for value in values.tolist())


def plot_loss_curve(losses: Sequence[float], steps: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Plot the loss of each step in a pale colour, and the moving mean in a strong one.

    A single loss says little: it depends mostly on the sampled timesteps. `losses`: of the steps so far. `steps`: the
    training's number of steps, at the right end of the axis. `size`: (width, height) in pixels.
    """
    width, height = size
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE)
    box = (_MARGIN + 15, _MARGIN, width - _MARGIN // 2, height - _MARGIN)
    left, top, right, bottom = box
    smooth = _moving_mean(losses)
    highest = float(max(np.quantile(losses, _RANGE), smooth.max())) * 1.05 if losses else 1.0

    def position(index: int, loss: float) -> tuple[float, float]:
        x = left + (right - left) * (index + 1) / steps
        return x, bottom - (bottom - top) * min(loss / highest, 1.0)

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        draw.line((left, y, right, y), _GRID)
        draw.text((left - 5, y), f"{highest * part / 4:.2g}", "black", font, anchor="rm")
    draw.text((left, bottom + 8), "0", "black", font, anchor="lt")
    draw.text((right, bottom + 8), f"step {steps:,}", "black", font, anchor="rt")
    if losses:
        for values, colour, thickness in ((losses, _SINGLE, 1), (smooth, _SMOOTH, 3)):
            # About one point for each column of pixels.
            stride = max(1, len(values) // (right - left))
            points = [position(index, values[index]) for index in range(0, len(values), stride)]
            draw.line([*points, position(len(values) - 1, values[-1])], colour, thickness, joint="curve")
    title = f"loss {smooth[-1]:.4f} after step {len(losses):,}" if losses else "loss"
    draw.text((left, top - 12), title, "black", font, anchor="lb")
    return image


def _moving_mean(losses: Sequence[float]) -> np.ndarray:
    """The mean of each loss with its neighbours, over a window of a twentieth of all losses. (losses,), float64."""
    values = np.asarray(losses, dtype=np.float64)
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    numbers = np.arange(len(values))
    first, last = np.maximum(numbers - reach, 0), np.minimum(numbers + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
