"""What is compared: a model with DreamCache, used in several ways, and with what one might use in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from dreamcache.dreamcache_core import Adapter, ReferenceCache
from dreamcache.nodes import patching

PROMPT_TOKENS = 77
CFG = 7.0
"""Any but 1, so that both prompts are evaluated."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What is compared: a model, an adapter as it was trained, and references, on the same device."""

    model: ModelPatcher
    adapter: Adapter
    references: Callable[[int], ReferenceCache]
    """So many, as Encode Reference makes them of pictures of the size that the model was trained at."""

    def reading(self, references: int = 1, **settings: Any) -> ModelPatcher:
        """With DreamCache. `settings`: of the injection."""
        adapter = patching.wrap_for_drawing(self.adapter)
        return patching.inject(self.model, patching.Injection(adapter, self.references(references), **settings))

    def projecting_anew(self) -> ModelPatcher:
        """The straightforward form of DreamCache: trained weights as they are, keys and values anew at every step."""
        # A copy, for ComfyUI moves it to where the model is.
        adapter = patching.wrap_adapter(copy.deepcopy(self.adapter).to(self.model.model.get_dtype_inference()))
        model = patching.inject(self.model, patching.Injection(adapter, self.references(1)))
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "benchmark", _forget_memories)
        return model

    def with_image_tokens(self, tokens: int) -> ModelPatcher:
        """The mechanism of an IP-Adapter: beside every cross-attention over the prompt one over so many image tokens,
        with keys and values of its own.
        """
        structure, device = patching.structure_of(self.model), self.model.load_device
        kind: dict[str, Any] = {"device": device, "dtype": self.model.model.get_dtype_inference()}
        image = torch.randn(1, tokens, structure.context_dim, **kind)
        model = self.model.clone()
        for layer in structure.layers:
            weights = torch.randn(2, layer.channels, structure.context_dim, **kind) * structure.context_dim**-0.5
            side, number, *_ = layer.name.replace("middle_block", "middle_block.0").split(".")
            model.set_model_attn2_replace(
                partial(_attend_to_image_too, image, weights), side.partition("_")[0], int(number)
            )
        return model


PLAIN, READING, CONDITIONED, STRENGTH_0 = "plain model", "DreamCache", "rows: conditioned", "strength: 0"
VARIANTS: dict[str, Callable[[Bench], ModelPatcher]] = {
    PLAIN: lambda bench: bench.model.clone(),
    READING: lambda bench: bench.reading(),
    CONDITIONED: lambda bench: bench.reading(rows="conditioned"),
    "image_guidance: 2": lambda bench: bench.reading(image_guidance=2.0),
    STRENGTH_0: lambda bench: bench.reading(strength=0.0),
    "4 references": lambda bench: bench.reading(4),
    "16 references": lambda bench: bench.reading(16),
    "straightforward": lambda bench: bench.projecting_anew(),
    "IP-Adapter, 4 tokens": lambda bench: bench.with_image_tokens(4),
    "IP-Adapter, 16 tokens": lambda bench: bench.with_image_tokens(16),
}


def _forget_memories(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, *args):
    model_options["transformer_options"][patching.RUN_KEY].memories.clear()
    return executor(x, timestep, model_options, *args)


def _attend_to_image_too(image: torch.Tensor, weights: torch.Tensor, query, key, value, options: dict) -> torch.Tensor:
    attention = partial(
        optimized_attention,
        heads=options["n_heads"],
        attn_precision=options["attn_precision"],
        transformer_options=options,
    )
    of_image = (torch.nn.functional.linear(image, weight).expand(len(query), -1, -1) for weight in weights)
    return attention(query, key, value) + attention(query, *of_image)


class Evaluations(comfy.samplers.Sampler):
    """A sampler that leaves it to someone else when, and how often, the model is evaluated as in a step: with both
    prompts, at the first sigma.
    """

    def __init__(self, visit: Callable[[Callable[[torch.Tensor], torch.Tensor]], None]) -> None:
        self._visit = visit

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        self._visit(lambda latents: model_wrap(latents, sigmas[:1].expand(len(latents)), **extra_args))
        return noise


def guider_of(model: ModelPatcher) -> comfy.samplers.CFGGuider:
    """What samples with two prompts, which are zeros."""
    guider = comfy.samplers.CFGGuider(model)
    prompt = torch.zeros(1, PROMPT_TOKENS, patching.structure_of(model).context_dim, device=model.load_device)
    guider.set_conds([[prompt, {}]], [[prompt, {}]])
    guider.set_cfg(CFG)
    return guider
