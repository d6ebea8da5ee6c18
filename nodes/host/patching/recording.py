"""Recording: a caching pass keeps the inputs of the U-Net's transformers (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ....dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache, Source
from ....dreamcache_core.unet import TransformerLayer
from .options import KEY, RUN_KEY

TIMESTEPS = 1000
"""The number of timesteps that every base model was trained with, whatever schedule samples it."""


class Recorded(Exception):  # noqa: N818  It is no error.
    """Ends an evaluation after the last recorded layer, since the rest of it isn't needed."""


@dataclass(frozen=True, eq=False)
class Recording:
    """The inputs of the layers that have recorders: layer name → (batch, channels, height, width)."""

    features: dict[str, torch.Tensor] = field(default_factory=dict)

    def cache(
        self,
        base_model: str,
        layers: tuple[TransformerLayer, ...],
        latent: torch.Tensor,
        timestep: int,
        prompt: str,
        source: Source | None = None,
        subject: torch.Tensor | None = None,
        per_latent: bool = False,
    ) -> ReferenceCache:
        """The reference cache of a finished caching pass over `latent`, (references, 4, height, width)."""
        size = (latent.shape[2], latent.shape[3])
        batch = ReferenceBatch(
            self.features, base_model, layers, size, timestep, prompt, source=source, subject=subject
        )
        return ReferenceCache((batch,), per_latent)


def with_recorders_only(model: ModelPatcher, layers: tuple[TransformerLayer, ...]) -> ModelPatcher:
    """A clone of `model` with recorders on `layers`, without other patches of attention and guidance.

    It keeps its weights and its schedule. The schedule of a distilled model (LCM) is replaced by the base model's: it
    has few timesteps, and not the first, at which references are cached.
    """
    model = model.clone()
    if len(model.get_model_object("model_sampling").sigmas) < TIMESTEPS:
        model.object_patches.pop("model_sampling", None)
    model.model_options = {"transformer_options": {}}
    model.wrappers = {}
    model.set_additional_models(KEY, [])
    for layer in layers:
        name = f"diffusion_model.{layer.name}.forward"
        model.add_object_patch(name, partial(_record, model.get_model_object(name), layer.name, len(layers)))
    return model


def _record(
    forward: Callable, layer: str, layers: int, x: torch.Tensor, context: Any = None, transformer_options: Any = None
):
    run = transformer_options.get(RUN_KEY)
    recording = run.recording if run else None
    if recording:
        recording.features[layer] = x.clone()
        if len(recording.features) == layers:
            raise Recorded
    return forward(x, context, transformer_options)
