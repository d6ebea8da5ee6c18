"""A start from the model's own attention: it looks where the frozen block looks, and changes nothing yet."""

from __future__ import annotations

import pytest
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter, untrained_adapter
from dreamcache.dreamcache_core.training.loss import sample_noise
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase, begin_as_the_model
from support.miniature import models
from support.trainings import pictures


@pytest.fixture
def started() -> tuple[ComfyUIBase, Adapter]:
    model = models.unet_patcher("sd15")
    adapter = untrained_adapter(structure_of(model), seed=1)
    base = ComfyUIBase(model, models.vae(), models.clip("sd15"), adapter)
    begin_as_the_model(base, adapter, [pictures(range(start, start + 12), 128) for start in (0, 12)], seed=1)
    return base, adapter


def test_keys_and_values_of_unseen_pictures_are_near_those_of_the_frozen_block(
    started: tuple[ComfyUIBase, Adapter],
) -> None:
    """Nearer than their mean, which is what a fit that learned nothing would give."""
    base, adapter = started
    latents = base.encode_images(pictures(range(100, 104), 128))
    _, _, noise = sample_noise(range(4), latents.shape[1:], 1, seed=9)
    for name, tokens in base.frozen_tokens(latents, noise).items():
        layer = adapter[name]
        key, value = layer.keys_values(tokens.features)
        # Softmax ignores what all keys share; to_out's bias has what all values share.
        frozen = base.unet.get_submodule(name).transformer_blocks[0].attn1
        out = layer.to_out(value)
        for ours, theirs in (
            (key - key.mean(1, True), tokens.key - tokens.key.mean(1, True)),
            (out, frozen.to_out(tokens.value)),
        ):
            left = (ours - theirs).square().sum() / (theirs - theirs.mean((0, 1))).square().sum()
            assert left < 0.5, name


def test_it_queries_as_the_frozen_block_and_changes_nothing_yet(started: tuple[ComfyUIBase, Adapter]) -> None:
    base, adapter = started
    for layer in adapter.layers:
        block = base.unet.get_submodule(layer.name).transformer_blocks[0]
        tokens = torch.randn(1, 5, layer.channels)
        ours = adapter[layer.name]
        torch.testing.assert_close(ours.to_q(ours.norm_mem(tokens)), block.attn1.to_q(block.norm1(tokens)))
    latents = base.encode_images(pictures(range(2)))
    cache = base.cache(latents, torch.zeros_like(latents))
    sigma, prompts = base.sigmas[[100, 900]], base.encode_prompts(["a dog", ""])
    with torch.no_grad():
        plain, reading = (base.denoise(latents, sigma, prompts, read) for read in (None, cache))
    torch.testing.assert_close(reading, plain, rtol=1e-5, atol=1e-5)
