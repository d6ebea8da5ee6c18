"""ControlNet's "reference-only" in its plain form: what DreamCache's own attention must equal, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.reference.cache import CachingInput
from dreamcache.nodes.host.base_model import structure_of


def reference_only(model: ModelPatcher, given: CachingInput, adapter: SelfAttentionAdapter) -> ModelPatcher:
    """At each step the reference, as noisy as the image, runs through the U-Net beside it, and image tokens attend to
    its tokens beside their own. `given`: of one reference. `adapter`: says in which layers.
    """
    base, unet = model.model, model.model.diffusion_model
    names = {layer.name for layer in adapter.on(structure_of(model)).layers}
    latent, noise = (tensor.to(model.load_device) for tensor in (base.process_latent_in(given.latent), given.noise))
    pooled = {} if given.pooled is None else {"pooled_output": given.pooled}
    conds = {"positive": comfy.sampler_helpers.convert_cond([[given.context, pooled]])}
    (cond,) = comfy.samplers.process_conds(base, noise, conds, latent.device, latent)["positive"]

    def evaluate(apply_model: Callable, args: dict[str, Any]) -> torch.Tensor:
        sigma, conditioning, tokens = args["timestep"], args["c"], {}
        hooks = [
            unet.get_submodule(f"{name}.transformer_blocks.0.norm1").register_forward_hook(
                lambda _, __, normed, name=name: tokens.update({name: normed})
            )
            for name in names
        ]
        noised = base.model_sampling.noise_scaling(sigma[:1].reshape(1, 1, 1, 1), noise, latent)
        # As many rows as the image has, which is how it is published.
        rows = len(args["input"])
        prompt = {name: value.process_cond(batch_size=rows).cond for name, value in cond["model_conds"].items()}
        options = {**conditioning["transformer_options"], "patches": {}}
        apply_model(noised.expand(rows, -1, -1, -1), sigma, **prompt, transformer_options=options)
        for hook in hooks:
            hook.remove()

        def extend(query, key, value, options):
            kind, number, *_ = options["block"]
            name = "middle_block.1" if kind == "middle" else f"{kind}_blocks.{number}.1"
            if name in names and not options["block_index"]:
                key, value = (torch.cat([own, tokens[name]], dim=1) for own in (key, value))
            return query, key, value

        options = {**conditioning["transformer_options"], "patches": {"attn1_patch": [extend]}}
        return apply_model(args["input"], sigma, **{**conditioning, "transformer_options": options})

    plain = model.clone()
    plain.set_model_unet_function_wrapper(evaluate)
    return plain
