"""The operations that a step must do: ComfyUI's own sampling of a full-size model, on tensors that have only shapes.

It takes a second, and next to no memory. Whatever would wait for a value of the device fails, for there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import prepare_model_patcher
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.reference.cache import CachingInput, ReferenceBatch, ReferenceCache
from dreamcache.dreamcache_core.training.loss import Batch, EncodedPrompts, denoising_loss
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from dreamcache.nodes.host.patching.caching_pass import weights_key
from dreamcache.nodes.host.patching.injection import injections_on
from dreamcache.nodes.host.patching.options import KEY, RUN_KEY
from dreamcache.nodes.host.patching.recording import recording
from dreamcache.nodes.host.patching.run_state import run_state
from dreamcache.nodes.host.patching.training import PYTORCH_ATTENTION, make_trainable, training_options
from harness.generated_weights import config_of
from torch.utils.flop_counter import FlopCounterMode

from .variants import PROMPT_TOKENS, Bench, Evaluate, Evaluations, guider_of

_META = torch.device("meta")
# The noise level of every step.
_SIGMA = 1.0
# SD1.5's, with ComfyUI's names.
_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class _OnPaper(ModelPatcher):
    """On a device without memory there is always enough of it."""

    def get_free_memory(self, device: torch.device) -> float:
        return float("inf")


def bench_on_paper(config: Any = None, size: int = 512) -> Bench:
    """`config`: ComfyUI's description of the model, by default of SD1.5. `size`: side of references in pixels."""
    model = _OnPaper((config or config_of("SD15")).get_model({}, device=_META).to(_META), _META, _META)
    side = size // 8
    # That which ComfyUI takes on a GPU; that of the CPU would ask how much memory there is.
    model.model_options["transformer_options"] = dict(PYTORCH_ATTENTION)
    structure = structure_of(model)
    with _META:
        adapter = Adapter(select_layers(structure.layers), structure.base_model)
    trainable = make_trainable(model, adapter)
    with _patched(trainable), recording(trainable.model.diffusion_model, structure.layers) as recorded:
        latents, sigma = torch.empty(1, 4, side, side, device=_META), torch.empty(1, device=_META)
        prompt = torch.empty(1, PROMPT_TOKENS, structure.context_dim, device=_META)
        trainable.model.apply_model(latents, sigma, c_crossattn=prompt, transformer_options=training_options())

    def references(count: int) -> ReferenceCache:
        features = {layer: tensor.expand(count, -1, -1, -1) for layer, tensor in recorded.items()}
        given = CachingInput(latents.expand(count, -1, -1, -1), latents.expand(count, -1, -1, -1), prompt)
        batch = ReferenceBatch(
            features,
            structure.base_model,
            structure.layers,
            (side, side),
            timestep=1,
            prompt="",
            caching_inputs=(given,),
        )
        given.noise_levels.add(_SIGMA, weights_key(model), features)
        return ReferenceCache((batch,))

    return Bench(model, model, adapter, references)


def count_step(model: ModelPatcher, size: int, batch: int = 1) -> int:
    """Operations, two for each multiplication, of a step but the first. `size`: side of the pictures in pixels."""
    if any(injection.uses_noise_levels for injection in injections_on(model)):
        model = model.clone()
        model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _begin_step_on_paper)
    guider = guider_of(model)
    # What CFGGuider.sample does before it loads models, for which there is nothing here.
    guider.inner_model = model.model
    guider.conds = {name: [dict(cond) for cond in conds] for name, conds in guider.original_conds.items()}
    guider.model_options = create_model_options_clone(model.model_options)
    prepare_model_patcher(model, guider.conds, guider.model_options)
    latents = torch.empty(batch, 4, size // 8, size // 8, device=_META)
    counter = FlopCounterMode(display=False)

    def visit(evaluate: Evaluate) -> None:
        evaluate(latents)
        with counter:
            evaluate(latents)

    with _patched(model), torch.no_grad():
        sigmas = torch.empty(2, device=_META)
        guider.inner_sample(latents, None, _META, Evaluations(visit), sigmas, None, None, True, None)
    return counter.get_total_flops()


def _begin_step_on_paper(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, *args):
    """In place of the wrapper that reads the step's sigma, for there is none to read."""
    options = model_options["transformer_options"]
    options[RUN_KEY] = replace(run_state(options), sigma=_SIGMA)
    return executor(x, timestep, model_options, *args)


class _TrainingOnPaper(ComfyUIBase):
    """The frozen base of a training whose latents and prompts come from a disk cache."""

    def __init__(self, bench: Bench, adapter: Adapter) -> None:
        vae = SimpleNamespace(latent_channels=4)
        super().__init__(bench.model, vae, object(), adapter)

    def patched(self) -> AbstractContextManager[None]:
        return _patched(self._patcher)

    def load(self) -> None:
        """There is nothing to load."""

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        return torch.empty(len(images), 4, *(side // 8 for side in images.shape[1:3]), device=_META)

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts:
        return EncodedPrompts(torch.empty(len(prompts), PROMPT_TOKENS, self.structure.context_dim, device=_META))


def count_training(bench: Bench, size: int) -> int:
    """Operations of a training step with one sample, forwards and backwards, all of whose encodings are cached."""
    adapter = bench.adapter.requires_grad_()
    base = _TrainingOnPaper(bench, adapter)
    picture = torch.empty(1, size, size, 3, device=_META)
    with base.patched(), FlopCounterMode(display=False) as counter:
        denoising_loss(base, Batch([0], picture, picture, [""]), TrainingSettings()).sum().backward()
    return counter.get_total_flops()


def count_encoding(size: int) -> int:
    """Operations of SD1.5's VAE for one image."""
    with _META:
        vae = AutoencoderKL(ddconfig=_VAE, embed_dim=4)
        picture = torch.empty(1, 3, size, size)
    vae.encoder.mid.attn_1.optimized_attention = pytorch_attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(picture)
    return counter.get_total_flops()


@contextmanager
def _patched(model: ModelPatcher) -> Iterator[None]:
    model.patch_model(load_weights=False)
    model.pre_run()
    try:
        yield
    finally:
        model.cleanup()
        model.unpatch_model(unpatch_weights=False)
