"""A miniature model and its adapter in the test's own process, where its layers can be inspected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.caching_pass import record_references
from dreamcache.nodes.host.patching.guidance import Guider
from dreamcache.nodes.host.patching.injection import Injection, wrap_for_sampling
from support.miniature import models


class Studio:
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.model = models.unet_patcher("sd15", dtype=dtype)
        structure = structure_of(self.model)
        adapter = Adapter(select_layers(structure.layers), structure.base_model)
        adapter.load_state_dict(models.generated_weights(adapter, models.SEED))
        self.adapter = wrap_for_sampling(adapter)

    def cache(self, references: int = 1, seed: int = 1) -> ReferenceCache:
        latent = torch.randn(references, 4, 16, 24, generator=torch.Generator().manual_seed(seed))
        return record_references(self.model, latent, torch.zeros_like(latent), [[prompt(0), {}]], 1, "")

    def injection(self, cache: ReferenceCache | None = None, **settings: Any) -> Injection:
        return Injection(self.adapter, cache or self.cache(), **settings)

    def draw(
        self,
        *injections: Injection,
        layer: str = "middle_block.1",
        size: tuple[int, int] = (16, 24),
        batch: int = 1,
        **conditioning: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step. Returns its latents, and what came out of `layer`: (rows, batch, channels, height, width).

        `conditioning`: options of both prompts.
        """
        model = self.model
        for injection in injections:
            model = inject(model, injection)
        outputs: list[torch.Tensor] = []
        recording = model.clone()
        name = f"diffusion_model.{layer}.forward"
        recording.add_object_patch(name, _recorder(model.get_model_object(name), outputs))
        latent = torch.zeros(batch, 4, *size)
        latents = comfy.sample.sample(
            recording,
            comfy.sample.prepare_noise(latent, 5),
            1,
            4.0,
            "euler",
            "normal",
            [[prompt(1), conditioning]],
            [[prompt(2), conditioning]],
            latent,
            disable_pbar=True,
        )
        return latents, torch.cat(outputs).unflatten(0, (-1, batch))


def _recorder(forward: Callable, outputs: list[torch.Tensor]) -> Callable:
    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        outputs.append(forward(*args, **kwargs))
        return outputs[-1]

    return record


def prompt(seed: int) -> torch.Tensor:
    """Encoded: (1, tokens, channels)."""
    return torch.randn(1, 77, 48, generator=torch.Generator().manual_seed(seed))


def sample(
    model: ModelPatcher,
    guide: comfy.samplers.CFGGuider | None = None,
    batch: int = 1,
    cfg: float = 4.0,
    size: tuple[int, int] = (16, 16),
    steps: int = 4,
) -> torch.Tensor:
    """Latents after a run."""
    guide = guide or comfy.samplers.CFGGuider(model)
    guide.set_conds([[prompt(1), {}]], [[prompt(2), {}]])
    guide.set_cfg(cfg)
    latent = torch.zeros(batch, 4, *size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    return guide.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)


def guider(model: ModelPatcher) -> Guider:
    """DreamCache Guider, with an image guidance of 2."""
    made = Guider(model)
    made.image_guidance = 2.0
    return made
