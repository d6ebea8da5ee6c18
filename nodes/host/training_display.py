"""Shows a training on its node: a progress bar and a line of text. The front end fetches losses and samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import comfy.utils
from comfy_api.latest import io
from PIL import Image

from ...dreamcache_core.training.settings import TrainingSettings
from ...dreamcache_core.training.trainer import Progress
from ...dreamcache_core.training.validation import FLAT_AFTER, Validation, is_flat
from .node_text import show_text

_SECONDS_BETWEEN = 2
"""How often the text changes."""


class TrainingDisplay:
    """A session's listener that shows its progress on a node that is running."""

    def __init__(self, node: type[io.ComfyNode], settings: TrainingSettings) -> None:
        self._node = node
        self._settings = settings
        self._bar = comfy.utils.ProgressBar(settings.steps)
        self._shown = 0.0
        self._gap = ""

    def on_step(self, progress: Progress) -> None:
        steps = self._settings.steps
        if time.monotonic() - self._shown > _SECONDS_BETWEEN or progress.step == steps:
            left = (steps - progress.step) * self._settings.batch / progress.samples_per_second
            show_text(
                self._node,
                f"step {progress.step:,} of {steps:,}, {progress.samples_per_second:.2f} samples/s, "
                f"{timedelta(seconds=round(left))} left{self._gap}",
            )
            self._shown = time.monotonic()
        # Raises ComfyUI's InterruptProcessingException if the run was cancelled.
        self._bar.update_absolute(progress.step, steps)

    def on_samples(self, sheet: Image.Image, path: Path, step: int) -> None:
        pass

    def on_validation(self, validations: Sequence[Validation]) -> None:
        newest, flat = validations[-1], is_flat(validations, FLAT_AFTER)
        self._gap = f"\ngap {newest.gap:.4f} ± {newest.error:.4f} after step {newest.step:,}"
        self._gap += f"; it hasn't grown for {FLAT_AFTER} validations: patience ends such a training" if flat else ""

    def on_end(self) -> None:
        pass
