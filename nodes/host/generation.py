"""Samples: what a person at the graph would draw with a model, an adapter and a reference, drawn without a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

from ...dreamcache_core.adapter.network import Adapter
from ...dreamcache_core.figures.contact_sheet import contact_sheet
from ...dreamcache_core.generation import GenerationSettings
from ...dreamcache_core.io.images import planar, to_image
from ...dreamcache_core.reference.cache import ReferenceCache
from ...dreamcache_core.training.triplets import Triplets
from ...dreamcache_core.unet import PIXELS_PER_LATENT
from .patching.apply import inject
from .patching.injection import Injection, wrap_for_sampling
from .reference import encode_reference

OF_TRIPLETS = 4
"""How many triplets a training's samples use."""


def inject_reference(
    model: ModelPatcher, adapter: ModelPatcher, cache: ReferenceCache, settings: GenerationSettings, **how: Any
) -> ModelPatcher:
    """The model as Apply DreamCache gives it. `how`: further fields of Injection."""
    injection = Injection(
        adapter,
        cache,
        strength=settings.strength,
        start_percent=settings.start_percent,
        end_percent=settings.end_percent,
        image_guidance=settings.image_guidance,
        **how,
    )
    return inject(model, injection)


def to_sample(triplets: Triplets, prompts: Sequence[str], resolution: int) -> tuple[list[str], list[torch.Tensor]]:
    """What to watch a training with: `prompts`, or those of some triplets if all are empty, and a reference for each.

    The references are the subjects of these triplets, as `draw_samples` takes them.
    """
    numbers = range(0, len(triplets), math.ceil(len(triplets) / OF_TRIPLETS))
    plain = [triplets.plain(number, resolution) for number in numbers]
    chosen = [prompt.strip() for prompt in prompts if prompt.strip()] or [triplet.prompt for triplet in plain]
    return chosen, [planar(plain[number % len(plain)].reference) for number in range(len(chosen))]


@torch.no_grad()
def draw_samples(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    adapter: ModelPatcher,
    prompts: Sequence[str],
    references: Sequence[torch.Tensor | None],
    settings: GenerationSettings,
) -> Iterator[torch.Tensor]:
    """A picture of each prompt with the reference of its number: (height, width, 3), float32, 0…1, on the CPU.

    `adapter`: as Adapter Loader or wrap_for_sampling gives it. `references`: (height, width, 3), 0…1; None
    draws what the model draws without one.
    """
    side = settings.resolution
    channels = model.get_model_object("latent_format").latent_channels
    latent = torch.zeros(
        1,
        channels,
        side // PIXELS_PER_LATENT,
        side // PIXELS_PER_LATENT,
        device=comfy.model_management.intermediate_device(),
    )
    negative = _encode(clip, settings.negative)
    for prompt, reference in zip(prompts, references, strict=True):
        reading = model
        if reference is not None:
            cache = encode_reference(model, vae, clip, reference.unsqueeze(0), resolution=side)
            reading = inject_reference(model, adapter, cache, settings)
        yield draw(reading, vae, _encode(clip, prompt), negative, {"samples": latent}, settings)[0]


def draw(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    positive: list,
    negative: list,
    latent: Mapping[str, Any],
    settings: GenerationSettings,
    callback: Callable | None = None,
) -> torch.Tensor:
    """What KSampler and VAE Decode give: (batch, height, width, 3), float32, 0…1, on the CPU.

    `latent`: a LATENT. `callback`: called after each step, with its number first.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(samples, settings.seed, latent.get("batch_index")),
        settings.steps,
        settings.cfg,
        settings.sampler,
        settings.scheduler,
        positive,
        negative,
        samples,
        denoise=settings.denoise,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=True,
        seed=settings.seed,
    )
    return vae.decode(samples).float().cpu()


@dataclass(frozen=True, eq=False)
class SampleSheet:
    """A contact sheet of the same samples whenever it is drawn. Arguments as of `draw_samples`."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    prompts: Sequence[str]
    references: Sequence[torch.Tensor]
    settings: GenerationSettings

    def draw(self, adapter: Adapter, label: str) -> Image.Image:
        """With an adapter in training. `label`: of its column."""
        drawn = draw_samples(
            self.model,
            self.clip,
            self.vae,
            wrap_for_sampling(adapter),
            self.prompts,
            self.references,
            self.settings,
        )
        rows = [
            (to_image(reference), to_image(sample)) for reference, sample in zip(self.references, drawn, strict=True)
        ]
        return contact_sheet(rows, self.prompts, ["reference", label])


def _encode(clip: comfy.sd.CLIP, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
