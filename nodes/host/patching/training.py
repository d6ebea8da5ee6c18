"""Training through ComfyUI's own U-Net: what is trained is what samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch.utils.checkpoint import checkpoint

from ....dreamcache_core.adapter.network import Adapter
from ..base_model import structure_of
from .blocks import BlockHooks
from .caching_pass import without_patches
from .injection import Injection
from .options import KEY, Options


def make_trainable(model: ModelPatcher, adapter: Adapter, checkpointing: bool = False) -> ModelPatcher:
    """A clone of `model` that attends to a reference where its transformer_options, `training_options`, say so.

    `checkpointing`: recompute activations in the backward pass, which takes less memory and more time. The model's
    weights are used with their LoRAs, but without patches of attention and guidance. Raises DreamCacheError if the
    adapter doesn't fit the model.
    """
    adapter.check_fits(structure_of(model))
    # Dynamic VRAM lends weights memory for a moment only, and the backward pass needs them later.
    trainable = without_patches(model.clone(disable_dynamic=True))
    weights, hooks = _DifferentiableWeights(), BlockHooks(adapter.layers)
    trainable.set_injections(KEY, [PatcherInjection(weights.put_on, weights.take_off), hooks.injection])
    if checkpointing:
        for name, module in model.model.named_modules():
            # Nothing before the middle block has a gradient.
            differentiated = name.startswith(("diffusion_model.middle_block.", "diffusion_model.output_blocks."))
            if differentiated and isinstance(module, (ResBlock, SpatialTransformer)):
                forward = trainable.get_model_object(f"{name}.forward")
                trainable.add_object_patch(f"{name}.forward", partial(checkpoint, forward, use_reentrant=False))
    return trainable


def _pytorch_attention(_: Callable[..., torch.Tensor], *args: Any, **settings: Any) -> torch.Tensor:
    return attention_pytorch(*args, **settings)


PYTORCH_ATTENTION: Options = {"optimized_attention_override": _pytorch_attention}
"""The transformer_options for PyTorch's attention, whichever ComfyUI was started with."""


def training_options(*injections: Injection) -> Options:
    """The transformer_options with which a trainable model attends to the references of `injections`.

    Attention is PyTorch's: SageAttention has no gradients, and ComfyUI's choice for CPUs takes much longer.
    """
    return {KEY: injections, **PYTORCH_ATTENTION}


class _DifferentiableWeights:
    """Replaces weights that were loaded in inference mode, as ComfyUI's nodes load them, by others on the same memory:
    inference tensors can't be saved for a backward pass.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []

    @torch.inference_mode(False)
    def put_on(self, model: ModelPatcher) -> None:
        for module in model.model.diffusion_model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.is_inference():
                    shared = torch.empty(0, dtype=weight.dtype, device=weight.device)
                    shared.set_(weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride())
                    self._originals.append((module, name, weight))
                    setattr(module, name, torch.nn.Parameter(shared, requires_grad=False))

    def take_off(self, _: ModelPatcher) -> None:
        for original in self._originals:
            setattr(*original)
        self._originals.clear()
