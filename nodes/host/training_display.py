"""What a node says while it trains: a progress bar and a line of text. The front end asks for losses and samples."""

from __future__ import annotations

import time
from datetime import timedelta

import comfy.utils
from comfy_api.latest import io

from ...dreamcache_core.training.session import Progress
from ...dreamcache_core.training.settings import TrainingSettings
from .node_text import show_text

_SECONDS_BETWEEN = 2


class TrainingDisplay:
    """On a node that is running."""

    def __init__(self, node: type[io.ComfyNode], settings: TrainingSettings) -> None:
        self._node = node
        self._settings = settings
        self._bar = comfy.utils.ProgressBar(settings.steps)
        self._said = 0.0

    def show(self, progress: Progress) -> None:
        """After a step. The text follows every few seconds, and after the last step."""
        steps = self._settings.steps
        if time.monotonic() - self._said > _SECONDS_BETWEEN or progress.step == steps:
            left = (steps - progress.step) * self._settings.batch / progress.samples_per_second
            show_text(
                self._node,
                f"step {progress.step:,} of {steps:,}, {progress.samples_per_second:.2f} samples/s, "
                f"{timedelta(seconds=round(left))} left",
            )
            self._said = time.monotonic()
        self._bar.update_absolute(progress.step, steps)
