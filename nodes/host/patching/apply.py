"""Applying an injection to a model: the one function behind Apply DreamCache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from ..base_model import structure_of
from .blocks import BlockHooks
from .guidance import guide_by_image
from .injection import Injection, injections_on
from .options import KEY
from .sampling import begin_run, begin_step


def inject(model: ModelPatcher, injection: Injection) -> ModelPatcher:
    """A clone of `model` whose adapted layers attend to the reference cache.

    Raises DreamCacheError if model, adapter and cache do not belong to the same base model.
    """
    structure = structure_of(model)
    if isinstance(injection.adapter, SelfAttentionAdapter):
        injection = replace(injection, adapter=injection.adapter.on(structure))
        injection.cache.check_fits(structure, ())
        injection.cache.check_noise_levels(structure, reads_pooled=bool(model.model.adm_channels))
    else:
        injection.adapter.model.check_fits(structure)
        injection.cache.check_fits(structure, injection.layers)

    model = model.clone()
    if not any(injection.strength_at(layer.name) for layer in injection.layers):
        return model
    options = model.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), injection)
    layers = dict.fromkeys(layer for one in injections_on(model) for layer in one.layers)
    model.set_injections(KEY, [BlockHooks(tuple(layers)).injection])
    if not model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, begin_run)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, begin_step)
    if isinstance(injection.adapter, ModelPatcher):
        adapters = model.get_additional_models_with_key(KEY)
        if not any(injection.adapter.is_clone(other) for other in adapters):
            model.set_additional_models(KEY, [*adapters, injection.adapter])
    if injection.image_guidance != 1:
        model.set_model_sampler_post_cfg_function(partial(guide_by_image, injection))
    return model
