"""A session's progress on the console, and in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DreamCacheError
from .trainer import Progress
from .validation import FLAT_AFTER, Validation, is_flat


class ConsoleLog:
    """A listener that prints a line for each step, contact sheet and validation.

    `steps`: of the training in all. `patience`: of the session; without any, an early stop is offered.
    """

    def __init__(self, steps: int, patience: int = 0) -> None:
        self._steps = steps
        self._patience = patience

    def on_step(self, progress: Progress) -> None:
        print(
            f"step {progress.step:,} of {self._steps:,}: loss {progress.loss:.4f}, learning rate "
            f"{progress.learning_rate:.2e}, {progress.samples_per_second:.2f} samples/s",
            flush=True,
        )

    def on_samples(self, sheet: Image.Image, path: Path, step: int) -> None:
        print(f"samples: {path}", flush=True)

    def on_validation(self, validations: Sequence[Validation]) -> None:
        print(validations[-1].description, flush=True)
        if not self._patience and is_flat(validations, FLAT_AFTER):
            print(
                f"The gap hasn't grown for {FLAT_AFTER} validations: stop with Ctrl+C if the samples please you, or "
                f"let --patience {FLAT_AFTER} stop such a training.",
                flush=True,
            )

    def on_end(self) -> None:
        pass


class TensorBoardLog:
    """A listener that writes loss, learning rate, speed, validations and samples as TensorBoard events.

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

    def on_validation(self, validations: Sequence[Validation]) -> None:
        newest = validations[-1]
        losses = {"right reference": newest.right, "another's reference": newest.other, "no reference": newest.none}
        for name, value in (*losses.items(), ("gap", newest.gap)):
            self._writer.add_scalar(f"validation/{name}", value, newest.step)

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
