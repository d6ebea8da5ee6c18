"""The denoising loss with a reference for each triplet (paper, section 3.3), and what it needs of a frozen base model.

Everything random depends only on the seed and on the number of a triplet in the training. A training that was stopped
therefore resumes to the same bits, and several processes can share a batch.
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
    """Encoded prompts, as a U-Net reads them.

    `context`: for cross-attention, (batch, tokens, channels). `pooled`: (batch, channels), read by SDXL; None for other
    base models.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def expand(self, batch: int) -> EncodedPrompts:
        """One prompt, repeated for a batch."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return EncodedPrompts(self.context.expand(batch, -1, -1), pooled)


class FrozenBase(Protocol):
    """A base model whose weights training leaves alone. All tensors are on its device.

    `sigmas`: the noise levels of its schedule, (timesteps,) float32, rising. `predicts_v`: whether it predicts v; if
    not, it predicts the noise.
    """

    sigmas: torch.Tensor
    predicts_v: bool

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        """Images (batch, height, width, 3), 0…1 → latents (batch, 4, height / 8, width / 8), as the U-Net reads them.

        `keys`: fingerprints of the images, as Batch has them, for a base that caches latents.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts: ...

    def cache(self, latents: torch.Tensor, noise: torch.Tensor, subjects: torch.Tensor | None = None) -> ReferenceCache:
        """The caching pass, at timestep 1 with an empty prompt: a reference for each latent.

        `subjects`: as in Batch; only tokens on them are attended to. The features carry gradients if gradients are
        enabled, for trainings that include the U-Net.
        """
        ...

    def denoise(
        self, noised: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, cache: ReferenceCache | None
    ) -> torch.Tensor:
        """Predict the clean latents of `latents + sigma · noise`. Each latent reads its own reference, if any."""
        ...


@dataclass(frozen=True)
class Batch:
    """Triplets that one forward pass takes: a step's batch, or a micro-batch of it.

    `numbers`: the triplets' numbers in the training, counted over all epochs. `targets`, `references`: (batch, height,
    width, 3) float32, 0…1. `target_keys`, `reference_keys`: a fingerprint of each image that later epochs use again,
    None for one that they don't; empty if no image has one. `names`: of the triplets, for messages; empty if unknown.
    `subjects`: (batch, height, width), 1 where a reference is read; None: they all are everywhere.
    """

    numbers: Sequence[int]
    targets: torch.Tensor
    references: torch.Tensor
    prompts: Sequence[str]
    target_keys: Sequence[str | None] = ()
    reference_keys: Sequence[str | None] = ()
    names: Sequence[str] = ()
    subjects: torch.Tensor | None = None


def loss_weight(sigma: torch.Tensor, predicts_v: bool, min_snr: float = 0.0) -> torch.Tensor:
    """The factor from the squared error of denoised latents to that of the U-Net's prediction, of the shape of `sigma`.

    An error of ε is 1/σ times that of the latents, one of v √(1 + 1/σ²) times. Min-SNR weighting makes both
    min(1/σ², γ).
    """
    snr = sigma**-2
    if min_snr:
        return snr.clamp(max=min_snr)
    return 1 + snr if predicts_v else snr


def denoising_loss(base: FrozenBase, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
    """The loss of each triplet, (batch,), at a random timestep, with the triplet's reference."""
    with torch.no_grad():
        latents = base.encode_images(batch.targets, batch.target_keys)
        references = base.encode_images(batch.references, batch.reference_keys)
        sampled = sample_noise(
            batch.numbers, latents.shape[1:], len(base.sigmas), settings.seed, settings.timestep_bias
        )
        timesteps, noise, reference_noise = (tensor.to(latents.device) for tensor in sampled)
        cache = base.cache(references, reference_noise, batch.subjects)
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
    guided: float = 0.0,
) -> torch.Tensor:
    """The loss of each triplet, (batch,), at given `timesteps`, (batch,), and `noise`, of the shape of `latents`.

    `guided`: how much of the difference that the reference makes is added to the target. This makes the difference
    1 / (1 - guided) times as large (Tang et al. 2025, "Diffusion Models without Classifier-free Guidance").
    """
    sigma = base.sigmas[timesteps]
    noised = latents + sigma.reshape(-1, 1, 1, 1) * noise
    denoised, wanted = base.denoise(noised, sigma, prompts, cache), latents
    if guided and cache is not None:
        with torch.no_grad():
            wanted = latents + guided * (denoised - base.denoise(noised, sigma, prompts, None))
    error = (denoised - wanted).square().flatten(1).mean(1)
    return error * loss_weight(sigma, base.predicts_v, min_snr)


def sample_noise(
    numbers: Sequence[int], shape: Sequence[int], timesteps: int, seed: int, timestep_bias: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """Sample what is random in a step: timesteps (batch,), and noise of targets and of references, (batch, *shape).

    `numbers`: as in Batch. `timesteps`: how many the base has.
    """
    generators = [np.random.default_rng([seed, number]) for number in numbers]
    sampled = torch.tensor([generator.integers(timesteps) for generator in generators])
    if timestep_bias:
        sampled = biased_timesteps((sampled.double() + 0.5) / timesteps, timesteps, timestep_bias)
    noise, reference_noise = (
        torch.from_numpy(np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators]))
        for _ in range(2)
    )
    return sampled, noise, reference_noise


def biased_timesteps(uniform: torch.Tensor, timesteps: int, bias: float) -> torch.Tensor:
    """Timesteps with a density proportional to t^bias, from uniform numbers in 0…1: the same shape, int64."""
    # The inverse of the cumulative distribution, t^(1 + bias).
    return (timesteps * uniform ** (1 / (1 + bias))).long()
