"""The demo model's autoencoder: 128 × 128 pixels to 4 channels of 16 × 16, in ComfyUI's class of SD1.5's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .artwork import DEMO, trained_subjects
from .loop import DEVICE, as_tensor, initialize, on_device, train
from .world import random_scene

STEPS = 1_200
BATCH = 16
SCALE = 0.18215  # of SD1.5's latents: times this, their standard deviation is 1


def train_autoencoder(autoencoder: Any, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Train on scenes of all subjects that aren't held out. Returns its weights."""
    initialize(autoencoder)
    drawn = trained_subjects()

    def pictures_of_step(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scenes, -1…1, and the masks of their subjects."""
        random = np.random.default_rng([1, step])
        scenes = [random_scene(drawn, random) for _ in range(BATCH)]
        masks = np.stack([scene.mask for scene in scenes])[..., None]
        return as_tensor(np.stack([scene.image for scene in scenes])) * 2 - 1, as_tensor(masks)

    def loss_of_step(step: int) -> torch.Tensor:
        images, masks = pictures_of_step(step)
        # The subject is what one looks at, and an eighth of the picture.
        weight = 1 + 2 * masks
        with torch.autocast(DEVICE.type, torch.bfloat16):
            latents = autoencoder.encode(images)
            # Noise teaches the decoder to bear what a sampler leaves.
            noise = on_device(np.random.default_rng([10, step]).standard_normal(latents.shape, dtype=np.float32))
            decoded = autoencoder.decode(latents + 0.1 * noise).float()
        latents = latents.float()
        loss = ((decoded - images).abs() * weight).mean()
        for factor in (2, 4, 8):
            difference = F.avg_pool2d((decoded - images) * weight, factor)
            loss = loss + 0.5 * difference.abs().mean()
        size = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        return loss + 0.02 * size

    trained = train(autoencoder, loss_of_step, DEMO / "autoencoder", steps=steps, learning_rate=1e-3)
    weights = trained.state_dict()
    for name in ("quant_conv.weight", "quant_conv.bias"):
        weights[name] = weights[name] / SCALE
    weights["post_quant_conv.weight"] = weights["post_quant_conv.weight"] * SCALE
    return weights
