"""The denoising loss with references to attend to (paper, section 3.3), and what it needs of a frozen base model.

All that is random depends only on the seed and on the number of a triplet in the whole training. So a training that was
stopped continues exactly as it would have, and so do several processes that share its batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..reference.cache import ReferenceCache
from .settings import TrainingSettings


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
