"""The trainer: an adapter, its optimiser and its averaged weights, one step at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from ..adapter.network import Adapter
from ..adapter.provenance import Provenance
from .loss import Batch, FrozenBase, denoising_loss
from .settings import TrainingSettings


class Trainer:
    """An adapter in training: its optimiser, its averaged weights, and how many steps it has had.

    `average_over_processes` gives a tensor's mean over all processes that train together.
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
        self._average_over_processes = average_over_processes
        self._parameters = list(adapter.requires_grad_().parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._averaged = [parameter.detach().clone() for parameter in self._parameters]

    def train(self, parts: Sequence[Batch]) -> float:
        """Take one step on a batch, cut into parts that fit into memory. Returns the loss.

        If that is not a number, nothing has changed.
        """
        settings = self.settings
        size = sum(len(part.numbers) for part in parts)
        loss = torch.zeros((), device=self._parameters[0].device)
        self._optimizer.zero_grad(set_to_none=True)
        for part in parts:
            part_loss = denoising_loss(self.base, part, settings).sum() / size
            part_loss.backward()
            loss += part_loss.detach()
        loss = self._average_over_processes(loss)
        if not loss.isfinite():
            return float(loss)
        for gradient in (parameter.grad for parameter in self._parameters if parameter.grad is not None):
            gradient.copy_(self._average_over_processes(gradient))
        clip_grad_norm_(self._parameters, settings.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self._optimizer.step()
        self.step += 1
        # Early averages would remember the first weights for long, so they follow closer at first.
        decay = min(settings.ema, self.step / (self.step + 10)) if settings.ema else 0.0
        torch._foreach_lerp_(self._averaged, [parameter.detach() for parameter in self._parameters], 1 - decay)
        return float(loss)

    def averaged_adapter(self) -> Adapter:
        """A copy of the adapter with its averaged weights, which is what one keeps."""
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
        """All that must be kept for training to go on exactly as it would have; see `restore`."""
        return {
            "step": self.step,
            "adapter": self.adapter.state_dict(),
            "averaged": list(self._averaged),
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.step = state["step"]
        self.adapter.load_state_dict(state["adapter"])
        for averaged, tensor in zip(self._averaged, state["averaged"], strict=True):
            averaged.copy_(tensor)
        self._optimizer.load_state_dict(state["optimizer"])
