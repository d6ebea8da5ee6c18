"""The caching pass: one evaluation of the frozen U-Net over the reference (paper, section 3.1)."""

from __future__ import annotations

from contextlib import suppress

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ....dreamcache_core.reference.cache import ReferenceCache, Source
from ....dreamcache_core.unet import STAGES, select_layers
from ..base_model import structure_of
from .options import RUN_KEY
from .recording import Recorded, Recording, with_recorders_only
from .run_state import RunState


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
    `subject`: those of ReferenceBatch. The model's weights are used with their LoRAs, but without patches of attention
    and guidance.
    """
    structure = structure_of(model)
    layers = select_layers(structure.layers, STAGES)
    recording = Recording()
    recorded = with_recorders_only(model, layers)
    recorded.model_options = {"transformer_options": {RUN_KEY: RunState(recording=recording)}}

    guider = comfy.samplers.CFGGuider(recorded)
    guider.inner_set_conds({"positive": conditioning})
    sigma = recorded.get_model_object("model_sampling").sigmas[timestep].reshape(1)
    with suppress(Recorded):
        guider.sample(noise, latent, SingleEvaluation(), sigma, disable_pbar=True)
    device = comfy.model_management.intermediate_device()
    for layer, features in recording.features.items():
        recording.features[layer] = features.to(device)
    return recording.cache(structure.base_model, layers, latent, timestep, prompt, source, subject)


class SingleEvaluation(comfy.samplers.Sampler):
    """A sampler that evaluates the model once, at the latent noised to the first sigma, and returns the prediction."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sampling = model_wrap.inner_model.model_sampling
        return model_wrap(sampling.noise_scaling(sigmas, noise, latent_image), sigmas.expand(len(noise)), **extra_args)
