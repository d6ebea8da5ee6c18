"""Training an adapter on a frozen base model: the usual denoising loss, with a reference to read (paper, section 3.3).

Whatever is random depends on the seed and on the number of a sample in the whole course of training, and on nothing
else. So a run that was stopped goes on exactly as it would have, and so do several processes that share its batches.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from .adapter import Adapter
from .checkpoint import check_room, load_checkpoint, newest_checkpoint, save_checkpoint
from .errors import DreamCacheError
from .reference_cache import ReferenceCache


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """What a U-Net reads of prompts. `context`: of its cross-attention, (batch, tokens, channels). `pooled`: beside it
    in SDXL, (batch, channels); None where the U-Net reads none.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def expand(self, batch: int) -> EncodedPrompts:
        """Of one prompt, those of a batch."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return EncodedPrompts(self.context.expand(batch, -1, -1), pooled)


class FrozenBase(Protocol):
    """What training needs of a base model, whose weights it leaves alone. All tensors are on the base's device.

    `sigmas`: noise levels of its schedule, (timesteps,) float32, rising. `predicts_v`: else it predicts the noise.
    """

    sigmas: torch.Tensor
    predicts_v: bool

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        """(batch, 3, height, width), 0…1 → latents (batch, 4, height / 8, width / 8), as the U-Net reads them.

        `keys`: as in Batch, for a base that keeps the latents of pictures that come again.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts: ...

    def cache(self, latents: torch.Tensor, noise: torch.Tensor) -> ReferenceCache:
        """The caching pass at timestep 1 with the empty prompt. Gradients are of use only if the U-Net learns too."""
        ...

    def denoise(
        self, noised: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, cache: ReferenceCache | None
    ) -> torch.Tensor:
        """Denoised latents, of latents + sigma · noise. Each latent reads the reference of its own number, or none."""
        ...


@dataclass(frozen=True)
class Batch:
    """Samples of one step, and their numbers in the whole course of training.

    `targets`, `references`: (batch, 3, height, width) float32, 0…1. `target_keys`, `reference_keys`: a fingerprint of
    each that comes again in later epochs, None for one that doesn't; empty if nothing is known of any.
    """

    numbers: Sequence[int]
    targets: torch.Tensor
    references: torch.Tensor
    prompts: Sequence[str]
    target_keys: Sequence[str | None] = ()
    reference_keys: Sequence[str | None] = ()


@dataclass(frozen=True)
class TrainingSettings:
    """How an adapter is trained; `steps` and `batch` are the paper's by default (section 4.1).

    `warm_up`: steps of rising learning rate. `cosine`: whether the rate then falls to 0. `clip`: largest norm of the
    gradients. `ema`: decay of the averaged weights, 0 for none. `min_snr`: γ of min-SNR weighting (arXiv 2303.09556),
    0 for none. `timestep_bias`: of timestep t, how often it is drawn is proportional to its power t^bias: 0 draws all
    alike, and more the noisy ones more often, which are where a reference tells most.
    """

    steps: int = 200_000
    batch: int = 48
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warm_up: int = 500
    cosine: bool = False
    clip: float = 1.0
    ema: float = 0.9999
    min_snr: float = 0.0
    timestep_bias: float = 0.0
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warm_up))
        done = max(0, step - self.warm_up) / max(1, self.steps - self.warm_up)
        return rate * (1 + math.cos(math.pi * min(1.0, done))) / 2 if self.cosine else rate


def loss_weight(sigma: torch.Tensor, predicts_v: bool, min_snr: float = 0.0) -> torch.Tensor:
    """What turns the squared error of denoised latents into that of the prediction.

    An error of ε is 1/σ that of the latents, and one of v √(1 + 1/σ²); min-SNR weighting makes both min(1/σ², γ).
    """
    snr = sigma**-2
    if min_snr:
        return snr.clamp(max=min_snr)
    return 1 + snr if predicts_v else snr


def denoising_loss(base: FrozenBase, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
    """Loss of each sample, (batch,): how far the prediction at a random timestep is off, with the reference to read."""
    with torch.no_grad():
        latents = base.encode_images(batch.targets, batch.target_keys)
        references = base.encode_images(batch.references, batch.reference_keys)
        draws = draw(batch.numbers, latents.shape[1:], len(base.sigmas), settings.seed, settings.timestep_bias)
        timesteps, noise, reference_noise = (tensor.to(latents.device) for tensor in draws)
        cache = base.cache(references, reference_noise)
        prompts = base.encode_prompts(batch.prompts)
    return loss_at(base, latents, timesteps, noise, prompts, cache, settings.min_snr)


def loss_at(
    base: FrozenBase,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    prompts: EncodedPrompts,
    cache: ReferenceCache | None,
    min_snr: float = 0.0,
) -> torch.Tensor:
    """Loss of each sample, (batch,), at these timesteps (batch,) and with this noise, which has the latents' shape."""
    sigma = base.sigmas[timesteps]
    denoised = base.denoise(latents + sigma.reshape(-1, 1, 1, 1) * noise, sigma, prompts, cache)
    error = (denoised - latents).square().flatten(1).mean(1)
    return error * loss_weight(sigma, base.predicts_v, min_snr)


def draw(
    numbers: Sequence[int], shape: Sequence[int], timesteps: int, seed: int, timestep_bias: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """What is random of samples: timesteps (batch,), noise and the references' noise (batch, *shape)."""
    generators = [np.random.default_rng([seed, number]) for number in numbers]
    drawn_timesteps = torch.tensor([generator.integers(timesteps) for generator in generators])
    if timestep_bias:
        drawn_timesteps = biased_timesteps((drawn_timesteps.double() + 0.5) / timesteps, timesteps, timestep_bias)
    noise, reference_noise = (
        torch.from_numpy(np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators]))
        for _ in range(2)
    )
    return drawn_timesteps, noise, reference_noise


def biased_timesteps(uniform: torch.Tensor, timesteps: int, bias: float) -> torch.Tensor:
    """Of numbers that are uniform in 0…1, timesteps drawn as TrainingSettings has it; the same shape, int64."""
    # Of a uniform number, this power has the density that is asked for.
    return (timesteps * uniform ** (1 / (1 + bias))).long()


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
                f"{last.name if last else 'the start'} with a lower learning rate, or with another precision."
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
