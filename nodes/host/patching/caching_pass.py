"""The caching pass: one evaluation of the frozen U-Net over the reference (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ....dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from ....dreamcache_core.reference.cache import CachingInput, ReferenceBatch, ReferenceCache, Source
from ....dreamcache_core.unet import STAGES, TransformerLayer, select_layers
from ..base_model import structure_of
from .options import KEY
from .recording import Features, recording

TIMESTEPS = 1000
"""The number of timesteps that every base model was trained with, whatever schedule samples it."""


def record_references(
    model: ModelPatcher,
    latent: torch.Tensor,
    noise: torch.Tensor,
    conditioning: list,
    timestep: int,
    prompt: str,
    source: Source | None = None,
    subject: torch.Tensor | None = None,
) -> ReferenceCache:
    """Run the U-Net once over references and cache the inputs of its transformers.

    `latent`, `noise`: (references, 4, height, width), in the VAE's scale. `conditioning`: of `prompt`. `source`,
    `subject`: those of ReferenceBatch. The model's weights are used with their LoRAs, but without patches of
    attention and guidance.
    """
    structure = structure_of(model)
    layers = select_layers(structure.layers, STAGES)
    plain = without_patches(model)
    guider = comfy.samplers.CFGGuider(plain)
    guider.inner_set_conds({"positive": conditioning})
    sigma = plain.get_model_object("model_sampling").sigmas[timestep].reshape(1)
    with recording(plain.model.diffusion_model, layers) as features:
        guider.sample(noise, latent, SingleEvaluation(), sigma, disable_pbar=True)
    ((context, details),) = conditioning
    batch = ReferenceBatch(
        _on_intermediate_device(features),
        structure.base_model,
        layers,
        (latent.shape[2], latent.shape[3]),
        timestep,
        prompt,
        source=source,
        subject=subject,
        caching_inputs=(CachingInput(latent, noise, context, details.get("pooled_output")),),
    )
    return ReferenceCache((batch,))


def cache_noise_level(guider: Any, cache: ReferenceCache, adapter: SelfAttentionAdapter, sigma: float) -> None:
    """Run the caching passes that a step lacks, in the middle of a sampling run, and keep their features in the cache.

    `guider`: of the run.
    """
    weights, names = weights_key(guider.model_patcher), frozenset(layer.name for layer in adapter.layers)
    for batch in cache.batches:
        for given in batch.caching_inputs:
            if not given.noise_levels.covers(sigma, weights, names, adapter.reuse_within):
                features = _features_at(guider.inner_model, given, adapter.layers, sigma)
                given.noise_levels.add(sigma, weights, features)


def weights_key(model: ModelPatcher) -> Hashable:
    """Tells a model's weights, with their LoRAs, from others in this process."""
    return model.patches_uuid


def without_patches(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` without patches of attention and guidance. Its weights keep their LoRAs.

    The schedule of a distilled model (LCM) is replaced by the base model's: it has few timesteps, and not the first, at
    which references are cached.
    """
    model = model.clone()
    if len(model.get_model_object("model_sampling").sigmas) < TIMESTEPS:
        model.object_patches.pop("model_sampling", None)
    model.model_options = {"transformer_options": {}}
    model.wrappers = {}
    model.set_additional_models(KEY, [])
    return model


class SingleEvaluation(comfy.samplers.Sampler):
    """A sampler that evaluates the model once, at the latent noised to the first sigma, and returns the prediction."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sampling = model_wrap.inner_model.model_sampling
        return model_wrap(sampling.noise_scaling(sigmas, noise, latent_image), sigmas.expand(len(noise)), **extra_args)


def _features_at(model: Any, given: CachingInput, layers: Sequence[TransformerLayer], sigma: float) -> Features:
    """The features at a noise level. `model`: a BaseModel that is loaded."""
    device = comfy.model_management.get_torch_device()
    latent = model.process_latent_in(given.latent.to(device, torch.float32))
    noise = given.noise.to(device, torch.float32)
    pooled = {} if given.pooled is None else {"pooled_output": given.pooled}
    conds = {"positive": comfy.sampler_helpers.convert_cond([[given.context, pooled]])}
    conds = comfy.samplers.process_conds(model, noise, conds, device, latent)
    sigmas = torch.full((len(latent),), sigma, device=device)
    noised = model.model_sampling.noise_scaling(sigmas.reshape(-1, 1, 1, 1), noise, latent)
    with recording(model.diffusion_model, layers) as features:
        comfy.samplers.calc_cond_batch(model, [conds["positive"]], noised, sigmas, {"transformer_options": {KEY: ()}})
    return _on_intermediate_device(features)


def _on_intermediate_device(features: Features) -> Features:
    device = comfy.model_management.intermediate_device()
    return {layer: tensor.to(device) for layer, tensor in features.items()}
