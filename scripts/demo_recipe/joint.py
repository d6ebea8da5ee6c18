"""The U-Net goes on together with an adapter, so that it learns to draw what an adapter reads.

A large model can draw whatever is told it in its own features. A small one, trained on prompts alone, has had nobody to
tell it more than a prompt does, and an adapter that is trained on it afterwards changes little. Gradients go through
the caching pass too: to predict what noise there is at timestep 1, so small a U-Net need not know what it sees, and
here it learns to show it. The adapter of this training isn't kept: the one that ships is trained by itself, from
nothing, on the U-Net as it then is.
"""

from __future__ import annotations

import numpy as np
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.training.loss import EncodedPrompts, biased_timesteps, loss_at
from dreamcache.dreamcache_core.training.processes import Processes
from torch import nn

from .adapter import AS_IT_SHIPS, TIMESTEP_BIAS, DemoBase, Training
from .artwork import DEMO
from .base import NO_PROMPT
from .loop import on_device, train
from .scenes import Scenes

STEPS = 10_500
BATCH = 16
"""Of each of two processes."""
NO_REFERENCE = 0.25
"""How often the U-Net draws without an adapter, which is what it must do as well as before."""


def train_together(
    training: Training, adapter: Adapter, scenes: Scenes, processes: Processes, steps: int = STEPS
) -> dict[str, torch.Tensor]:
    """Train with the trainer's loss. Returns the U-Net's weights, named `unet.…`."""
    base = training.base_of(adapter, AS_IT_SHIPS)
    base.load()
    network = nn.ModuleDict({"unet": base.unet, "adapter": adapter})
    # In order, so that the empty one is the first.
    captions, numbers_of = np.unique(["", *scenes.captions], return_inverse=True)
    with torch.no_grad():
        # The text encoder stays as it is, so that each is encoded once.
        contexts = base.encode_prompts(captions.tolist()).context
    numbers = on_device(numbers_of[1:])

    def loss_of_step(step: int) -> torch.Tensor:
        random = np.random.default_rng([15, step])
        chosen = on_device(random.integers(len(scenes), size=BATCH))
        latents, references = scenes.latents[chosen].float(), scenes.references[chosen].float()
        prompts = numbers[chosen]
        prompts[on_device(random.random(BATCH)) < NO_PROMPT] = 0
        noises = [on_device(random.standard_normal(latents.shape, dtype=np.float32)) for _ in range(2)]
        read = None if random.random() < NO_REFERENCE else references
        return loss(base, latents, read, contexts[prompts], on_device(random.random(BATCH)), *noises)

    trained = train(
        network, loss_of_step, DEMO / "joint", steps=steps, learning_rate=1e-3, falling=0.4, processes=processes
    )
    return {name: tensor for name, tensor in trained.state_dict().items() if name.startswith("unet.")}


def loss(
    base: DemoBase,
    latents: torch.Tensor,
    references: torch.Tensor | None,
    context: torch.Tensor,
    uniform: torch.Tensor,
    noise: torch.Tensor,
    noise_of_references: torch.Tensor,
) -> torch.Tensor:
    """The trainer's loss of a batch, with references or without. `uniform`: what timesteps are drawn with, 0…1."""
    cache = None if references is None else base.cache(references, noise_of_references)
    timesteps = biased_timesteps(uniform, len(base.sigmas), TIMESTEP_BIAS)
    return loss_at(base, latents, timesteps, noise, EncodedPrompts(context), cache).mean()
