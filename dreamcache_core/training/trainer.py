"""The trainer: an adapter, its optimiser and its averaged weights, one step at a time."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.nn.utils import clip_grad_norm_

from ..adapter.network import Adapter
from ..adapter.provenance import Provenance
from ..errors import DreamCacheError
from ..io.finite import VAE_ADVICE
from .loss import Batch, FrozenBase, denoising_loss
from .settings import TrainingSettings

# How many triplets, at most, a message names.
_NAMED = 4


@dataclass(frozen=True)
class Progress:
    """A step that was taken. `step`: its number; the first is 1. `samples_per_second`: triplets, in all processes."""

    step: int
    loss: float
    learning_rate: float
    samples_per_second: float


class Trainer:
    """An adapter in training: its optimiser, its averaged weights, and the number of steps taken.

    `average_over_processes`: gives the mean of a tensor over all processes of the training.
    """

    def __init__(
        self,
        base: FrozenBase,
        adapter: Adapter,
        settings: TrainingSettings,
        average_over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.settings = settings
        self.step = 0
        self.is_between_steps = True
        """False if an exception cut a step short while weights changed: the state belongs to no step then."""
        self._average_over_processes = average_over_processes
        self._parameters = list(adapter.requires_grad_().parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._averaged = [parameter.detach().clone() for parameter in self._parameters]

    def run(self, batches: Iterable[Sequence[Batch]]) -> Iterator[Progress]:
        """Take the steps that are left of the settings' `steps`. `batches`: the micro-batches of each of them.

        Raises DreamCacheError if a loss is not a number; that step has changed nothing then.
        """
        settings = self.settings
        started = time.monotonic()
        for micro_batches in itertools.islice(batches, max(0, settings.steps - self.step)):
            loss = self.train(micro_batches)
            rate = settings.learning_rate_at(self.step - 1)
            yield Progress(self.step, loss, rate, settings.batch / (time.monotonic() - started))
            started = time.monotonic()

    def train(self, micro_batches: Sequence[Batch]) -> float:
        """Take one step on a batch, cut into micro-batches that fit into memory. Returns the loss.

        Raises DreamCacheError if the loss is not a number; nothing has changed then.
        """
        settings = self.settings
        size = sum(len(micro_batch.numbers) for micro_batch in micro_batches)
        loss = torch.zeros((), device=self._parameters[0].device)
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for micro_batch in micro_batches:
            of_triplets = denoising_loss(self.base, micro_batch, settings)
            losses.append(of_triplets.detach())
            part_of_loss = of_triplets.sum() / size
            part_of_loss.backward()
            loss += part_of_loss.detach()
        loss = self._average_over_processes(loss)
        if not loss.isfinite():
            self._refuse(micro_batches, torch.cat(losses))
        for gradient in (parameter.grad for parameter in self._parameters if parameter.grad is not None):
            gradient.copy_(self._average_over_processes(gradient))
        clip_grad_norm_(self._parameters, settings.clip)
        self.is_between_steps = False
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self._optimizer.step()
        self.step += 1
        # A short memory at first: the average would otherwise remember the untrained weights for long.
        decay = min(settings.ema, self.step / (self.step + 10)) if settings.ema else 0.0
        torch._foreach_lerp_(self._averaged, [parameter.detach() for parameter in self._parameters], 1 - decay)
        self.is_between_steps = True
        return float(loss)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The adapter has its averaged weights meanwhile, which are those to use. The step after is the same."""
        trained = [parameter.detach().clone() for parameter in self._parameters]
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._averaged)
            try:
                yield
            finally:
                torch._foreach_copy_(self._parameters, trained)

    @torch.no_grad()
    def _refuse(self, micro_batches: Sequence[Batch], losses: torch.Tensor) -> NoReturn:
        """Raise DreamCacheError for a step whose loss is not a number. `losses`: of its triplets."""
        names = [name for micro_batch in micro_batches for name in micro_batch.names]
        bad = [name for name, loss in zip(names, losses.tolist(), strict=False) if not math.isfinite(loss)]
        of_triplets = f" with {', '.join(bad[:_NAMED])}{' …' * (len(bad) > _NAMED)}" if bad else ""
        images = (image for micro_batch in micro_batches for image in (micro_batch.targets, micro_batch.references))
        vae_works = all(self.base.encode_images(image).isfinite().all() for image in images)
        advice = "resume from the last checkpoint with a lower learning rate or another precision"
        raise DreamCacheError(
            f"The loss of step {self.step + 1} is not a number{of_triplets}: {advice if vae_works else VAE_ADVICE}."
        )

    def averaged_adapter(self) -> Adapter:
        """A copy of the adapter with the averaged weights, which are those to use."""
        adapter = copy.deepcopy(self.adapter).requires_grad_(False)
        for parameter, averaged in zip(adapter.parameters(), self._averaged, strict=True):
            parameter.copy_(averaged)
        return adapter.eval()

    def finished_adapter(self, base_hash: str, triplets: int) -> Adapter:
        """The averaged adapter, with this training added to its provenance.

        `base_hash`: `hash_weights` of the base model's U-Net. `triplets`: how many the data set has.
        """
        adapter = self.averaged_adapter()
        adapter.provenance += (Provenance(base_hash, self.step, self.settings.batch, triplets),)
        return adapter

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to resume the training to the same bits. Its tensors are not copies."""
        return {
            "step": self.step,
            "adapter": self.adapter.state_dict(),
            "averaged": list(self._averaged),
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to the step at which `state` was taken."""
        self.step = state["step"]
        self.adapter.load_state_dict(state["adapter"])
        for averaged, tensor in zip(self._averaged, state["averaged"], strict=True):
            averaged.copy_(tensor)
        self._optimizer.load_state_dict(state["optimizer"])
