"""A session's progress on the console, and in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DreamCacheError
from .trainer import Progress


class ConsoleLog:
    """A listener that prints a line for each step and each contact sheet. `steps`: of the training in all."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step(self, progress: Progress) -> None:
        print(
            f"step {progress.step:,} of {self._steps:,}: loss {progress.loss:.4f}, learning rate "
            f"{progress.learning_rate:.2e}, {progress.samples_per_second:.2f} samples/s",
            flush=True,
        )

    def on_samples(self, sheet: Image.Image, path: Path, step: int) -> None:
        print(f"samples: {path}", flush=True)

    def on_end(self) -> None:
        pass


class TensorBoardLog:
    """A listener that writes loss, learning rate, speed and samples as TensorBoard events.

    `folder`: for the files of events. `steps_taken`: before this session; events of later steps, from a session that
    was killed, are hidden. Raises DreamCacheError if TensorBoard is missing.
    """

    def __init__(self, folder: Path, steps_taken: int) -> None:
        self._writer = _event_writer(folder, steps_taken)

    def on_step(self, progress: Progress) -> None:
        self._writer.add_scalar("loss", progress.loss, progress.step)
        self._writer.add_scalar("learning rate", progress.learning_rate, progress.step)
        self._writer.add_scalar("samples per second", progress.samples_per_second, progress.step)

    def on_samples(self, sheet: Image.Image, path: Path, step: int) -> None:
        self._writer.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def on_end(self) -> None:
        self._writer.close()


def _event_writer(folder: Path, steps_taken: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DreamCacheError(
            "TensorBoard is not installed: run pip install tensorboard, or leave out --tensorboard."
        ) from error
    return SummaryWriter(str(folder), purge_step=steps_taken + 1)
