"""The demo model's U-Net and text encoder, trained together on scenes and their captions."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .artwork import DEMO
from .loop import DEVICE, initialize, on_device, train
from .scenes import prompt_tokens, read_scenes

STEPS = 3_000
BATCH = 32
NO_PROMPT = 0.1
"""How often the prompt is left out, for the negative prompt of guidance."""


def train_base(networks, steps: int = STEPS, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Train with the usual denoising loss, for v. Returns weights named `unet.…` and `text_encoder.…`."""
    unet, text_encoder = networks.model.model.diffusion_model, networks.clip.cond_stage_model
    network = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    initialize(network)
    for module in text_encoder.modules():
        if isinstance(module, nn.LayerNorm):
            # ComfyUI's encoder adds to its tokens in place, and gradients need what each norm was given.
            module.register_forward_pre_hook(lambda _, args: (args[0].clone(),))
    scenes = {name: tensor.to(DEVICE) for name, tensor in read_scenes().items()}
    empty = torch.tensor(prompt_tokens(networks.clip, ""), dtype=torch.int32, device=DEVICE)
    sigmas = networks.model.model.model_sampling.sigmas.to(DEVICE)

    def loss_of_step(step: int) -> torch.Tensor:
        random = np.random.default_rng([3, step])
        chosen = on_device(random.integers(len(scenes["latents"]), size=batch))
        latents, tokens = scenes["latents"][chosen], scenes["tokens"][chosen]
        tokens[on_device(random.random(batch) < NO_PROMPT)] = empty
        timesteps = on_device(random.integers(len(sigmas), size=batch))
        noise = on_device(random.standard_normal(latents.shape, dtype=np.float32))
        sigma = sigmas[timesteps].reshape(-1, 1, 1, 1)
        scale = (1 + sigma**2).rsqrt()
        context, _ = text_encoder.clip_l(tokens.tolist())
        v = unet(scale * (latents + sigma * noise), timesteps, context=context)
        return (v - scale * (noise - sigma * latents)).square().mean()

    trained = train(network, loss_of_step, DEMO / "base", steps=steps, learning_rate=8e-4)
    return trained.state_dict()
