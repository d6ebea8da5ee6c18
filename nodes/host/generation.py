"""Generation without a graph: the images that Apply DreamCache, KSampler and VAE Decode would give."""

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
from ...dreamcache_core.figures.sample_sheet import sample_tiles
from ...dreamcache_core.generation import GenerationSettings
from ...dreamcache_core.io.images import planar, to_image
from ...dreamcache_core.reference.cache import ReferenceCache
from ...dreamcache_core.training.triplets import Triplets
from ...dreamcache_core.unet import PIXELS_PER_LATENT
from .base_model import decode_latents
from .patching.apply import inject
from .patching.injection import AnyAdapter, Injection, wrap_for_sampling
from .reference import encode_reference

TRIPLET_SAMPLES = 4
"""How many triplets, at most, a training's samples are taken from."""


def inject_reference(
    model: ModelPatcher, adapter: AnyAdapter, cache: ReferenceCache, settings: GenerationSettings, **fields: Any
) -> ModelPatcher:
    """A clone of the model with the Injection of these settings. `fields`: further fields of the Injection."""
    injection = Injection(
        adapter,
        cache,
        strength=settings.strength,
        start_percent=settings.start_percent,
        end_percent=settings.end_percent,
        image_guidance=settings.image_guidance,
        **fields,
    )
    return inject(model, injection)


def choose_samples(triplets: Triplets, prompts: Sequence[str], resolution: int) -> tuple[list[str], list[torch.Tensor]]:
    """Choose the prompts and the references of a training's samples, of equal number.

    `prompts`: empty ones are left out; if none is left, prompts of a few triplets are taken. The references are those
    of the same triplets, in turn, (height, width, 3), 0…1.
    """
    indices = range(0, len(triplets), math.ceil(len(triplets) / TRIPLET_SAMPLES))
    plain = [triplets.plain(index, resolution) for index in indices]
    chosen = [prompt.strip() for prompt in prompts if prompt.strip()] or [triplet.prompt for triplet in plain]
    return chosen, [planar(plain[index % len(plain)].reference) for index in range(len(chosen))]


@torch.no_grad()
def generate_samples(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    adapter: AnyAdapter,
    prompts: Sequence[str],
    references: Sequence[torch.Tensor | None],
    settings: GenerationSettings,
) -> Iterator[torch.Tensor]:
    """Generate an image for each prompt with its reference: (height, width, 3), 0…1, float32, on the CPU.

    `adapter`: from `wrap_for_sampling`. `references`: one for each prompt, (height, width, 3), 0…1; None generates
    without a reference. ComfyUI may unload the U-Net in between, so a training has to load it again before its next
    step.
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
        injected = model
        if reference is not None:
            cache = encode_reference(model, vae, clip, reference.unsqueeze(0), resolution=side)
            injected = inject_reference(model, adapter, cache, settings)
        yield generate(injected, vae, _encode(clip, prompt), negative, {"samples": latent}, settings)[0]


def generate(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    positive: list,
    negative: list,
    latent: Mapping[str, Any],
    settings: GenerationSettings,
    callback: Callable | None = None,
) -> torch.Tensor:
    """Sample and decode like KSampler and VAE Decode: (batch, height, width, 3), 0…1, float32, on the CPU.

    `positive`, `negative`: CONDITIONINGs. `latent`: a LATENT. `callback`: ComfyUI's, called after each step.
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
    return decode_latents(vae, samples)


@dataclass(frozen=True, eq=False)
class SampleSheet:
    """A sheet of a training's samples: the same prompts, references and noise each time it is generated.

    `references`: one for each prompt, (height, width, 3), 0…1.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    prompts: Sequence[str]
    references: Sequence[torch.Tensor]
    settings: GenerationSettings

    def generate(self, adapter: Adapter, label: str) -> Image.Image:
        """Each reference, under its prompt, beside the image of an adapter in training. `label`: of these images."""
        generated = generate_samples(
            self.model,
            self.clip,
            self.vae,
            wrap_for_sampling(adapter),
            self.prompts,
            self.references,
            self.settings,
        )
        references, images = map(to_image, self.references), map(to_image, generated)
        return sample_tiles(self.prompts, references, images, label).draw()


def _encode(clip: comfy.sd.CLIP, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
