"""An injection: what one Apply DreamCache puts on a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher

from ....dreamcache_core.adapter.fused import fuse
from ....dreamcache_core.adapter.network import Adapter
from ....dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from ....dreamcache_core.adapter.strengths import CONSTANT, Curve, Strengths
from ....dreamcache_core.errors import DreamCacheError
from ....dreamcache_core.reference.cache import ReferenceCache
from ....dreamcache_core.unet import TransformerLayer
from .options import KEY

# The rows of the batch that attend to the reference: those of every prompt, of positive ones, or of negative ones.
Rows = Literal["both", "conditioned", "unconditioned"]


# What DreamCache nodes hand to each other as an adapter.
AnyAdapter: TypeAlias = "ModelPatcher | SelfAttentionAdapter"


@dataclass(frozen=True, eq=False)
class Injection:
    """What is injected, how strongly, when, where, and into which rows of the batch.

    `adapter`: a ModelPatcher around a core Adapter, or the model's own self-attention.
    `start_percent`, `end_percent`: of sampling, 0…1, inclusive.
    `image_guidance`: s_image, how far to push towards this reference; 1 adds no push.
    `strengths`: factors of `strength`. `guidance_curve`: factors of `image_guidance - 1` over sampling.
    `region`: one mask, or one for each latent of the batch, (masks, height, width) of any size, 0…1, a factor of the
    injected change; None: everywhere.
    """

    adapter: AnyAdapter
    cache: ReferenceCache
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    image_guidance: float = 1.0
    rows: Rows = "both"
    strengths: Strengths = field(default_factory=Strengths)
    guidance_curve: Curve = CONSTANT
    region: torch.Tensor | None = None

    def __deepcopy__(self, _: Any) -> Injection:
        """Itself: it never changes, a run knows it by its identity, and nodes that copy a model's options would copy
        adapter and reference with it.
        """
        return self

    @property
    def layers(self) -> tuple[TransformerLayer, ...]:
        """The adapted layers."""
        return self.adapter.layers if isinstance(self.adapter, SelfAttentionAdapter) else self.adapter.model.layers

    @property
    def uses_noise_levels(self) -> bool:
        """Whether each step attends to features of its own noise level."""
        return isinstance(self.adapter, SelfAttentionAdapter)

    def strength_at(self, layer: str) -> float:
        """The strength at a layer, 0 at a layer without an adapter."""
        for own in self.layers:
            if own.name == layer:
                return self.strength * self.strengths.at_layer(own, self.cache.layers)
        return 0.0


def injections_on(model: ModelPatcher) -> tuple[Injection, ...]:
    """The injections on a MODEL, in the order in which they were applied."""
    return model.model_options["transformer_options"].get(KEY, ())


def wrap_adapter(adapter: Adapter) -> ModelPatcher:
    """Hand an adapter to ComfyUI's memory management, which loads, casts and offloads it like any model."""
    # The class of ComfyUI's own models; older versions, without dynamic VRAM, have only one.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return patcher(
        adapter,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def wrap_for_sampling(adapter: Adapter) -> ModelPatcher:
    """Hand the fused form of an adapter to ComfyUI, which casts it to the model's compute precision."""
    patcher = wrap_adapter(fuse(adapter, comfy.ops.manual_cast))
    patcher.set_attachments(KEY, adapter)
    return patcher


def unfused(adapter: AnyAdapter) -> Adapter:
    """The adapter that `wrap_for_sampling` was given, which can be saved and trained.

    Raises DreamCacheError for the model's own self-attention.
    """
    if isinstance(adapter, SelfAttentionAdapter):
        raise DreamCacheError(
            "The adapter is the model's own attention, which has no weights to save or train: choose a trained adapter "
            "in DreamCache Adapter Loader."
        )
    return adapter.get_attachment(KEY)
