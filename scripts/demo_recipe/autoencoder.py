"""The demo model's autoencoder: 128 × 128 pixels to 4 channels of 16 × 16, in ComfyUI's class of SD1.5's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .artwork import DEMO, trained_subjects
from .loop import DEVICE, as_tensor, initialize, on_device, train
from .world import random_scene

STEPS = 1_200
DECODER_STEPS = 700
BATCH = 16
SCALE = 0.18215  # of SD1.5's latents: times this, their standard deviation is 1


def train_autoencoder(autoencoder: Any, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Train on scenes of all subjects that aren't held out. Returns its weights."""
    initialize(autoencoder)
    trained = train(autoencoder, _loss(autoencoder), DEMO / "autoencoder", steps=steps, learning_rate=1e-3)
    weights = trained.state_dict()
    for name in ("quant_conv.weight", "quant_conv.bias"):
        weights[name] = weights[name] / SCALE
    weights["post_quant_conv.weight"] = weights["post_quant_conv.weight"] * SCALE
    return weights


def train_decoder(autoencoder: Any, steps: int = DECODER_STEPS) -> dict[str, torch.Tensor]:
    """Go on with the decoder alone, which latents that are written already bear. Returns all weights."""
    autoencoder.float()
    parts = nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder])
    loss = _loss(autoencoder, decoder_only=True)
    trained = train(parts, loss, DEMO / "decoder", steps=steps, learning_rate=5e-4)
    parts.load_state_dict(trained.state_dict())
    return autoencoder.state_dict()


def _loss(autoencoder: Any, decoder_only: bool = False) -> Callable[[int], torch.Tensor]:
    drawn = trained_subjects()
    # The decoder's training comes after that of the whole, whose latents are scaled at its end.
    scale = SCALE if decoder_only else 1.0

    def pictures_of_step(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scenes, -1…1, and the masks of their subjects."""
        random = np.random.default_rng([11 if decoder_only else 1, step])
        scenes = [random_scene(drawn, random) for _ in range(BATCH)]
        masks = np.stack([scene.mask for scene in scenes])[..., None]
        return as_tensor(np.stack([scene.image for scene in scenes])) * 2 - 1, as_tensor(masks)

    def loss_of_step(step: int) -> torch.Tensor:
        images, masks = pictures_of_step(step)
        # The subject is what one looks at, and a part of the picture.
        weight = 1 + 2 * masks
        with torch.autocast(DEVICE.type, torch.bfloat16):
            with torch.set_grad_enabled(not decoder_only):
                latents = autoencoder.encode(images)
            # Noise teaches the decoder to bear what a sampler leaves.
            noise = on_device(np.random.default_rng([10, step]).standard_normal(latents.shape, dtype=np.float32))
            decoded = autoencoder.decode(latents + 0.1 / scale * noise).float()
        latents = latents.float() * scale
        loss = ((decoded - images).abs() * weight).mean()
        for factor in (2, 4, 8):
            difference = F.avg_pool2d((decoded - images) * weight, factor)
            loss = loss + 0.5 * difference.abs().mean()
        size = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        return loss + 0.02 * size

    return loss_of_step
