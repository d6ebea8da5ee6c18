"""A training session: an adapter is trained in an output folder until it is finished or stopped, and resumes there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from ..adapter.network import Adapter
from ..adapter.provenance import hash_weights
from ..errors import DreamCacheError
from .loss import Batch
from .output_folder import TrainingFolder
from .processes import ALONE, Processes
from .trainer import Progress, Trainer
from .validation import HeldOut, Validation, is_flat

_HASH_DIGITS = 12
UNTRAINED = "untrained"
NO_LORAS = "none"

GenerateSamples = Callable[[Adapter, str], Image.Image]
"""Generates samples with an adapter, as a contact sheet under a label."""


class Listener(Protocol):
    """Hears of a session's events, in the main process. What it raises stops the session."""

    def on_step(self, progress: Progress) -> None:
        """A step was taken, and written to the output folder."""

    def on_samples(self, sheet: Image.Image, path: Path, step: int) -> None:
        """Samples of a step were generated, and written to `path`."""

    def on_validation(self, validations: Sequence[Validation]) -> None:
        """The adapter was measured. `validations`: all so far; the last is that of this step."""

    def on_end(self) -> None:
        """The session is over: finished, stopped or failed."""


@dataclass(frozen=True)
class Origin:
    """What a training is begun with, and must resume with.

    `base_hash`: `hash_weights` of the base model's U-Net. `adapter`: UNTRAINED, or what `describe_weights` gives.
    `folder`: that of the triplets. `loras`: NO_LORAS, or what tells the LoRAs on the U-Net from others. `held_out`: how
    many triplets aren't trained on.
    """

    base_hash: str
    adapter: str
    folder: str
    batch: int
    resolution: int
    seed: int
    loras: str = NO_LORAS
    held_out: int = 0

    def to_json(self) -> dict[str, str | int]:
        return {
            "model": self.base_hash[:_HASH_DIGITS],
            "adapter": self.adapter,
            "folder": self.folder,
            "batch": self.batch,
            "resolution": self.resolution,
            "seed": self.seed,
            "LoRAs": self.loras,
            "held_out": self.held_out,
        }


def describe_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """The weights of the adapter that a training is begun with, as Origin records them."""
    return hash_weights(weights)[:_HASH_DIGITS]


class TrainingSession:
    """A training in its output folder, from the newest checkpoint there to the last step.

    `step`: the number of steps taken; 0 in a new training. `losses`: one for each of them, NaN where it isn't known.
    `validations`: those so far.
    Of several processes all must make one, and only the main one writes.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: TrainingFolder,
        origin: Origin,
        *,
        triplets: int,
        checkpoint_every: int,
        sample_every: int = 0,
        generate_samples: GenerateSamples | None = None,
        held_out: HeldOut | None = None,
        patience: int = 0,
        write_adapter: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        """Open the folder and restore the trainer from the newest checkpoint.

        `triplets`: how many are trained on. `checkpoint_every`: in steps; the last step has a checkpoint in any case.
        `sample_every`: likewise for samples; 0 for none. `held_out`: what the adapter is measured on at each
        checkpoint. `patience`: validations without growth of the gap that end the training; 0 for no end.
        `write_adapter`: whether each checkpoint comes with the adapter's file.
        Raises DreamCacheError if the training was begun with another origin, if the disk has no room for checkpoints,
        if the folder can't be written to, or if other processes see another folder.
        """
        self._trainer = trainer
        self._folder = folder
        self._origin = origin
        self._triplets = triplets
        self._checkpoint_every = checkpoint_every
        self._sample_every = sample_every
        self._generate_samples = generate_samples
        self._held_out = held_out
        self._patience = patience
        self._write_adapter = write_adapter
        self._processes = processes
        self._device = trainer.base.sigmas.device
        with folder.writing():
            folder.begin(origin.to_json(), write=processes.is_main)
            folder.check_room(trainer.state())
            if processes.is_main:
                folder.clean()
            state = folder.load_checkpoint()
            if state:
                trainer.restore(state)
            self._check_processes()
            self.losses = folder.resume_losses(trainer.step) if processes.is_main else []
            self.validations = folder.validations(trainer.step)
            if processes.is_main:
                folder.keep_validations(self.validations)
        self._checkpoint_step = trainer.step
        self._adapter_step: int | None = None

    @property
    def step(self) -> int:
        return self._trainer.step

    @property
    def is_flat(self) -> bool:
        """Whether the gap has stopped growing, which ends a training with patience."""
        return is_flat(self.validations, self._patience)

    def run(
        self,
        batches: Iterable[Sequence[Batch]],
        listeners: Sequence[Listener] = (),
        is_stop_requested: Callable[[], bool] = lambda: False,
    ) -> Generator[Progress, None, None]:
        """Train to the last step, until the gap is flat, or until a stop is requested. `batches`: the micro-batches of
        each step from here on.

        `is_stop_requested`: asked after each step; all processes stop after the same one, whichever was asked to.
        Closing the iterator stops it as well, and so does an exception of a listener, of the samples or of the process.
        However it is stopped between two steps, it writes a checkpoint first.
        Raises DreamCacheError if a loss is not a number, or if the folder can't be written to.
        """
        listeners = listeners if self._processes.is_main else ()
        with self._folder.writing():
            try:
                for progress in () if self.is_flat else self._trainer.run(batches):
                    if self._processes.is_main:
                        # First: resuming drops losses of steps after the checkpoint, but can't recover missing ones.
                        self.losses.append(progress.loss)
                        self._folder.add_loss(progress.loss)
                        for listener in listeners:
                            listener.on_step(progress)
                    if self._is_due(self._checkpoint_every):
                        self._validate(listeners)
                        if self._processes.is_main:
                            self._save()
                    if self._processes.is_main:
                        self._sample(progress.step, listeners)
                    yield progress
                    if self._processes.any(self.is_flat or is_stop_requested(), self._device):
                        break
                self._save_rest()
            except DreamCacheError:
                raise
            except BaseException:
                if self._trainer.is_between_steps:
                    self._save_rest()
                raise
            finally:
                for listener in listeners:
                    listener.on_end()

    def finished_adapter(self) -> Adapter:
        """The adapter so far, with its averaged weights and this training in its provenance."""
        return self._trainer.finished_adapter(self._origin.base_hash, self._triplets)

    def _validate(self, listeners: Sequence[Listener]) -> None:
        """Measure the adapter, in all processes."""
        if not self._held_out:
            return
        with self._trainer.averaged_weights():
            validation = self._held_out.validate(self._trainer.base, self.step)
        self.validations.append(validation)
        if self._processes.is_main:
            self._folder.add_validation(validation)
        for listener in listeners:
            listener.on_validation(self.validations)

    def _save(self) -> None:
        self._folder.save_checkpoint(self._trainer.state())
        self._checkpoint_step = self.step
        self._save_adapter()

    def _save_adapter(self) -> None:
        if self._write_adapter:
            self._folder.save_adapter(self.finished_adapter())
        self._adapter_step = self.step

    def _save_rest(self) -> None:
        """Save the last step, as far as it isn't saved."""
        if not self.step or not self._processes.is_main:
            return
        if self._checkpoint_step != self.step:
            self._save()
        elif self._adapter_step != self.step:
            # The process may have been killed between this checkpoint and its adapter.
            self._save_adapter()

    def _sample(self, step: int, listeners: Sequence[Listener]) -> None:
        if not (self._generate_samples and self._sample_every and self._is_due(self._sample_every)):
            return
        sheet = self._generate_samples(self._trainer.averaged_adapter(), f"step {step:,}")
        path = self._folder.add_sheet(sheet, step)
        for listener in listeners:
            listener.on_samples(sheet, path, step)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._trainer.settings.steps

    def _check_processes(self) -> None:
        step = torch.tensor(self.step, dtype=torch.float64, device=self._device)
        if self._processes.average(step) != self.step:
            raise DreamCacheError(
                f"Process {self._processes.index} resumes after step {self.step} and others after another: give an "
                "output folder that all machines share."
            )
