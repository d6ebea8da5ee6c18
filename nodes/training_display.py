"""What a node shows while it trains: a progress bar, a line of text, and the loss curve beside the newest samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import comfy.utils
from comfy_api.latest import io
from PIL import Image

from ..dreamcache_core import Progress, TrainingSettings, draw_loss_curve
from .on_node import show_text

_SECONDS_BETWEEN = 2
_MAX_SIZE = 1024
"""Of the picture, in pixels: ComfyUI scales larger ones down."""


class TrainingDisplay:
    """On a node that is running. `sheets`: contact sheets of samples so far. `sheet`: the one that is shown."""

    def __init__(self, node: type[io.ComfyNode], settings: TrainingSettings, sheets: Sequence[Image.Image]) -> None:
        self.sheet = sheets[-1] if sheets else None
        self._node = node
        self._settings = settings
        self._bar = comfy.utils.ProgressBar(settings.steps)
        self._drawn = 0.0

    def show(self, progress: Progress, losses: Sequence[float]) -> None:
        """After a step. Text and picture follow every few seconds, and after the last step."""
        picture, steps = None, self._settings.steps
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN or progress.step == steps:
            picture = ("JPEG", self._picture(losses), _MAX_SIZE)
            left = (steps - progress.step) * self._settings.batch / progress.samples_per_second
            show_text(
                self._node,
                f"step {progress.step:,} of {steps:,}, {progress.samples_per_second:.2f} samples/s, "
                f"{timedelta(seconds=round(left))} left",
            )
            self._drawn = time.monotonic()
        self._bar.update_absolute(progress.step, steps, picture)

    def _picture(self, losses: Sequence[float]) -> Image.Image:
        curve = draw_loss_curve(losses, self._settings.steps)
        if not self.sheet:
            return curve
        sheet = self.sheet.resize((round(self.sheet.width * curve.height / self.sheet.height), curve.height))
        both = Image.new("RGB", (curve.width + sheet.width, curve.height), "white")
        both.paste(curve, (0, 0))
        both.paste(sheet, (curve.width, 0))
        return both
