"""A training session: an adapter is trained in an output folder, and can be stopped and resumed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DreamCacheError
from .checkpoints import check_room, load_checkpoint, newest_checkpoint, save_checkpoint
from .loss import Batch
from .trainer import Trainer


@dataclass(frozen=True)
class Progress:
    """After a step: how many there have been, and how the last one went."""

    step: int
    loss: float
    learning_rate: float
    samples_per_second: float


def run(
    trainer: Trainer, batches: Iterable[Sequence[Batch]], folder: Path, every: int, save: bool = True
) -> Iterator[Progress]:
    """Train on `batches`, each in parts, up to the settings' number of steps; stop whenever nobody asks for more.

    Every so many steps, and after the last, a checkpoint is written to `folder`, and training goes on from the newest
    that is there: `batches` must begin at the step that `resume` gave. Without `save`, none is written: of several
    processes one is enough.
    Raises DreamCacheError if the disk is too full for checkpoints, or if the loss is not a number.
    """
    settings = trainer.settings
    started = time.monotonic()
    for parts in itertools.islice(batches, max(0, settings.steps - trainer.step)):
        loss = trainer.train(parts)
        if not math.isfinite(loss):
            last = newest_checkpoint(folder)
            raise DreamCacheError(
                f"The loss of step {trainer.step + 1} is not a number: resume from "
                f"{last.name if last else 'the start'} with a lower learning rate or another precision."
            )
        if save and (trainer.step % every == 0 or trainer.step == settings.steps):
            save_checkpoint(folder, trainer.state())
        now = time.monotonic()
        rate = settings.learning_rate_at(trainer.step - 1)
        yield Progress(trainer.step, loss, rate, settings.batch / (now - started))
        started = time.monotonic()


def resume(trainer: Trainer, folder: Path) -> int:
    """Go on from the newest checkpoint in `folder`. Returns the number of steps that are done, 0 without one.

    Raises DreamCacheError if the disk hasn't room for the checkpoints that are to come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, trainer.state())
    state = load_checkpoint(folder)
    if state:
        trainer.restore(state)
    return trainer.step
