"""A training's loss curve: plotted as an image, or thinned out for a plot in the front end."""

from __future__ import annotations

import itertools
import math
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
_SINGLE, _SMOOTH, _GAP, _GRID = "#b8cbe6", "#1f5fbf", "#2a9d4a", "#dddddd"


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


def plot_loss_curve(
    losses: Sequence[float], steps: int, gaps: Sequence[tuple[int, float]] = (), size: tuple[int, int] = (640, 480)
) -> Image.Image:
    """Plot the loss of each step in a pale colour, the moving mean in a strong one, and the gap of validations in
    green, on a scale of its own from 0 to the largest gap.

    A single loss says little: it depends mostly on the sampled timesteps. Losses that aren't finite leave gaps.
    `losses`: of the steps so far. `steps`: the training's number of steps, at the right end of the axis. `gaps`:
    the step and the gap of each validation. `size`: (width, height) in pixels.
    """
    width, height = size
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE)
    box = (_MARGIN + 15, _MARGIN, width - _MARGIN // 2, height - _MARGIN)
    left, top, right, bottom = box
    smooth = _moving_mean(losses)
    finite = [loss for loss in losses if math.isfinite(loss)]
    highest = float(max(np.quantile(finite, _RANGE), np.nanmax(smooth))) * 1.05 if finite else 1.0

    def position(index: int, loss: float) -> tuple[float, float]:
        x = left + (right - left) * (index + 1) / steps
        return x, bottom - (bottom - top) * min(loss / highest, 1.0)

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        draw.line((left, y, right, y), _GRID)
        draw.text((left - 5, y), f"{highest * part / 4:.2g}", "black", font, anchor="rm")
    draw.text((left, bottom + 8), "0", "black", font, anchor="lt")
    draw.text((right, bottom + 8), f"step {steps:,}", "black", font, anchor="rt")
    for values, colour, thickness in ((losses, _SINGLE, 1), (smooth, _SMOOTH, 3)):
        # About one point for each column of pixels.
        stride = max(1, len(values) // (right - left))
        points = [(index, values[index]) for index in range(0, len(values), stride)]
        points += [(len(values) - 1, values[-1])] if finite else []
        for is_finite, run in itertools.groupby(points, lambda point: math.isfinite(point[1])):
            if is_finite:
                draw.line([position(*point) for point in run], colour, thickness, joint="curve")
    if gaps:
        largest = max(1e-9, *(gap for _, gap in gaps))
        heights = [(bottom - top) * max(gap, 0) / largest for _, gap in gaps]
        across = [left + (right - left) * step / steps for step, _ in gaps]
        draw.line([(x, bottom - height) for x, height in zip(across, heights, strict=True)], _GAP, 3, joint="curve")
        step, gap = gaps[-1]
        draw.text((right, top - 12), f"gap {gap:.4f} after step {step:,}", _GAP, font, anchor="rb")
    title = f"loss {smooth[-1]:.4f} after step {len(losses):,}" if finite else "loss"
    draw.text((left, top - 12), title, "black", font, anchor="lb")
    return image


def _moving_mean(losses: Sequence[float]) -> np.ndarray:
    """The mean of each step's finite losses with those of its neighbours, over a window of a twentieth of all steps;
    NaN where there are none. (losses,), float64.
    """
    values = np.asarray(losses, dtype=np.float64)
    reach = max(1, len(values) // 40)
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0], np.cumsum(each)]) for each in (np.where(finite, values, 0.0), finite))
    numbers = np.arange(len(values))
    first, last = np.maximum(numbers - reach, 0), np.minimum(numbers + reach + 1, len(values))
    with np.errstate(invalid="ignore"):  # Where none is finite: NaN.
        return (sums[last] - sums[first]) / (counts[last] - counts[first])
