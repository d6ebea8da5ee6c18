"""What one sees of a training while it runs: a line for each step, sheets of samples, and both in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DreamCacheError
from .output_folder import TrainingFolder
from .session import Progress


class TrainingLog:
    """Prints, and writes into an output folder: sheets to `samples`, with `tensorboard` events to `logs`.

    `done`: steps that checkpoints remember; events of later ones, of a training that was stopped, are dropped.
    Raises DreamCacheError if TensorBoard is wanted and missing.
    """

    def __init__(self, folder: Path, steps: int, done: int, tensorboard: bool) -> None:
        self._steps = steps
        self._folder = TrainingFolder(folder)
        self._writer = _event_writer(folder / "logs", done) if tensorboard else None

    def add_step(self, progress: Progress) -> None:
        print(
            f"step {progress.step:,} of {self._steps:,}: loss {progress.loss:.4f}, learning rate "
            f"{progress.learning_rate:.2e}, {progress.samples_per_second:.2f} samples/s",
            flush=True,
        )
        if self._writer:
            self._writer.add_scalar("loss", progress.loss, progress.step)
            self._writer.add_scalar("learning rate", progress.learning_rate, progress.step)
            self._writer.add_scalar("samples per second", progress.samples_per_second, progress.step)

    def add_sheet(self, sheet: Image.Image, step: int) -> None:
        print(f"samples: {self._folder.add_sheet(sheet, step)}", flush=True)
        if self._writer:
            self._writer.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def _event_writer(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DreamCacheError(
            "TensorBoard is not installed: run pip install tensorboard, or leave out --tensorboard."
        ) from error
    return SummaryWriter(str(folder), purge_step=done + 1)
