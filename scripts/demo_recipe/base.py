"""The demo model's U-Net and text encoder, trained together on scenes and their captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dreamcache.nodes.host.demo_network import DemoNetworks
from torch import nn

from .artwork import DEMO
from .loop import DEVICE, initialize, on_device, train
from .scenes import read_scenes

STEPS = 8_000
BATCH = 16
NO_PROMPT = 0.1
"""How often the prompt is left out, for the negative prompt of guidance."""


def train_base(networks: DemoNetworks, steps: int = STEPS, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Train with the usual denoising loss, for v. Returns weights named `unet.…` and `text_encoder.…`."""
    unet, text_encoder = networks.model.model.diffusion_model, networks.clip.cond_stage_model
    # ComfyUI's are in float16, in which what AdamW keeps of gradients is 0.
    network = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder.float()})
    initialize(network)
    for module in text_encoder.modules():
        if isinstance(module, nn.LayerNorm):
            # ComfyUI's encoder adds to its tokens in place, and gradients need what each norm was given.
            module.register_forward_pre_hook(lambda _, args: (args[0].clone(),))
    scenes = read_scenes()
    tokens_of = torch.tensor([prompt_tokens(networks.clip, caption) for caption in scenes.captions], dtype=torch.int32)
    empty = torch.tensor(prompt_tokens(networks.clip, ""), dtype=torch.int32)
    # Words that no caption has are never trained, and zeros pack well.
    words = torch.cat([tokens_of.flatten(), empty]).unique().long()
    embedding = text_encoder.clip_l.transformer.get_input_embeddings().weight.data
    embedding.copy_(torch.zeros_like(embedding).index_copy(0, words, embedding[words]))
    sigmas = networks.model.model.model_sampling.sigmas.to(DEVICE)

    def loss_of_step(step: int) -> torch.Tensor:
        random = np.random.default_rng([3, step])
        chosen = random.integers(len(scenes), size=batch)
        latents, tokens = scenes.latents[on_device(chosen)].float(), tokens_of[chosen]
        tokens[random.random(batch) < NO_PROMPT] = empty
        timesteps = on_device(random.integers(len(sigmas), size=batch))
        noise = on_device(random.standard_normal(latents.shape, dtype=np.float32))
        context, _ = text_encoder.clip_l(tokens.tolist())
        sigma = sigmas[timesteps].reshape(-1, 1, 1, 1)
        scale = (1 + sigma**2).rsqrt()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            noised = scale * (latents + sigma * noise)
            v = unet(noised, timesteps, context=context).float()
        return (v - scale * (noise - sigma * latents)).square().mean()

    trained = train(network, loss_of_step, DEMO / "base", steps=steps, learning_rate=8e-4)
    return trained.state_dict()


def prompt_tokens(clip: Any, prompt: str) -> list[int]:
    """The first part of a prompt, as ComfyUI cuts it."""
    return [token for token, *_ in clip.tokenize(prompt)["l"][0]]
