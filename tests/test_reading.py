"""That an adapter learns to read its reference: in a world of plain colours, on a U-Net that has just learned it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from demo.loop import initialize
from dreamcache.dreamcache_core import (
    Adapter,
    Batch,
    Trainer,
    TrainingSettings,
    denoising_loss,
    draw,
    untrained_adapter,
)
from dreamcache.dreamcache_core.training import loss_weight
from dreamcache.nodes import patching
from dreamcache.nodes.frozen_base import ComfyUIBase
from miniature import models

BATCH = 16
BASE_STEPS = 200
SETTINGS = TrainingSettings(steps=80, batch=BATCH, learning_rate=2e-3, warm_up=10, ema=0.9)
NEVER_SEEN = range(1_000_000, 1_000_064)


class Colours(ComfyUIBase):
    """A base model whose pictures are plain colours, which are latents as they are."""

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        latents = torch.nn.functional.avg_pool2d(images, 8) * 4 - 2
        return torch.cat([latents, latents.mean(1, keepdim=True)], 1)


def pictures(numbers: Sequence[int]) -> torch.Tensor:
    colours = np.stack([np.random.default_rng([21, number]).random(3, dtype=np.float32) for number in numbers])
    return torch.from_numpy(colours)[:, :, None, None].expand(-1, -1, 64, 64)


def batch(numbers: Sequence[int]) -> Batch:
    return Batch(numbers, pictures(numbers), pictures(numbers), ["a colour"] * len(numbers))


def samples(step: int) -> range:
    return range(step * BATCH, (step + 1) * BATCH)


@pytest.fixture(scope="module")
def base_and_adapter() -> tuple[Colours, Adapter]:
    """A base taught to draw any colour, of which only a reference can tell; and an adapter that is not trained yet."""
    model = models.unet_patcher("sd15_v")
    initialize(model.model.diffusion_model)
    adapter = untrained_adapter(patching.structure_of(model), seed=0)
    base = Colours(model, models.vae(), models.clip("sd15_v"), adapter)
    base.load()
    parameters = list(base.unet.requires_grad_().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    prompts = base.encode_prompts(["a colour"]).expand(BATCH)
    for step in range(BASE_STEPS):
        latents = base.encode_images(pictures(samples(step)))
        timesteps, noise, _ = draw(samples(step), latents.shape[1:], len(base.sigmas), seed=1)
        sigma = base.sigmas[timesteps]
        denoised = base.denoise(latents + sigma.reshape(-1, 1, 1, 1) * noise, sigma, prompts, None)
        error = (denoised - latents).square().flatten(1).mean(1)
        optimizer.zero_grad()
        (error * loss_weight(sigma, base.predicts_v)).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    base.unet.requires_grad_(False)
    return base, adapter


def test_the_right_reference_helps_on_colours_never_seen_and_a_wrong_one_does_not(
    base_and_adapter: tuple[Colours, Adapter],
) -> None:
    base, adapter = base_and_adapter
    right = batch(NEVER_SEEN)
    wrong = replace(right, references=pictures([number + 1000 for number in NEVER_SEEN]))

    @torch.no_grad()
    def loss(of: Batch) -> float:
        # The same timesteps and noise each time, for they follow from the samples' numbers.
        return float(denoising_loss(base, of, SETTINGS).mean())

    # It begins by changing nothing: this is the loss without a reference.
    without = loss(right)
    assert loss(wrong) == without
    trainer = Trainer(base, adapter, SETTINGS)
    for step in range(SETTINGS.steps):
        trainer.train([batch(samples(step))])
    assert loss(right) < 0.85 * without
    assert loss(right) < 0.85 * loss(wrong)
