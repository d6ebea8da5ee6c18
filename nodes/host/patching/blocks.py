"""The blocks that an adapter sits on: their image tokens attend to the reference beside themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher

from ....dreamcache_core.adapter.network import AdapterLayer, Attention
from ....dreamcache_core.unet import TransformerLayer
from .injection import Injection
from .options import Options
from .run_state import CachedKeysValues, RunState, active_injections, run_state


def patch_blocks(model: ModelPatcher, layers: tuple[TransformerLayer, ...]) -> None:
    """Let the first block of these transformers attend to whatever references its options name."""
    for layer in layers:
        name = f"diffusion_model.{layer.name}.transformer_blocks.0.forward"
        forward = model.get_model_object(name)
        if not isinstance(forward, _InjectedForward):
            model.add_object_patch(name, _InjectedForward(forward, layer.name))


@dataclass(frozen=True, eq=False)
class _InjectedForward:
    """The forward of an adapted transformer block; the block's own where nothing is injected."""

    forward: Callable
    layer: str

    def __call__(self, x: torch.Tensor, context: Any = None, transformer_options: Options | None = None):
        options = transformer_options or {}
        injections = [injection for injection in active_injections(options) if injection.strength_at(self.layer)]
        if not injections:
            return self.forward(x, context=context, transformer_options=options)
        # Last of all patches of the self-attention, so that those which rearrange its tokens have put them back.
        patches = options.get("patches", {})
        patch = partial(_add_references, self.layer, injections, x)
        patches = {**patches, "attn1_output_patch": [*patches.get("attn1_output_patch", ()), patch]}
        return self.forward(x, context=context, transformer_options={**options, "patches": patches})


def _add_references(
    layer: str, injections: list[Injection], x: torch.Tensor, self_attention: torch.Tensor, options: Options
) -> torch.Tensor:
    """An attn1_output_patch. Several injections add up: each adds the change that it would add alone.

    `x`: the block's image tokens; `self_attention`: its output; both (prompts · batch, tokens, channels).
    """
    attention = partial(optimized_attention, attn_precision=options.get("attn_precision"), transformer_options=options)
    run = run_state(options)
    result = self_attention.clone()
    for injection in injections:
        adapter: AdapterLayer = injection.adapter.model[layer]
        cached = _keys_values(adapter, injection, layer, x, run)
        biased = attention if cached.bias is None else partial(attention, mask=cached.bias)
        for rows in _attending_rows(injection, len(x), options, run):
            attend: Attention = biased
            if run.observer:
                attend = run.observer.observe(biased, injection, layer, cached.bias, rows, x, options)
            change = adapter(x[rows], self_attention[rows], cached.key, cached.value, attend)
            if injection.region is not None:
                change *= run.region(injection.region, x, options)[rows]
            if injection.strengths.curve in run.curves:
                change *= run.curves[injection.strengths.curve].at(options["sigmas"][:1]).to(x)
            result[rows].add_(change, alpha=injection.strength_at(layer))
    return result


def _keys_values(
    adapter: AdapterLayer, injection: Injection, layer: str, x: torch.Tensor, run: RunState
) -> CachedKeysValues:
    """The keys and values of an injection's references, computed once in a run."""
    key = (injection, layer, x.device, x.dtype)
    if key not in run.keys_values:
        keys, values = adapter.keys_values(injection.cache.tokens(layer).to(x))
        bias = injection.cache.bias(layer)
        run.keys_values[key] = CachedKeysValues(keys, values, None if bias is None else bias.to(x))
    return run.keys_values[key]


def _attending_rows(injection: Injection, rows: int, options: Options, run: RunState) -> list[slice]:
    """The rows of the evaluated batch that attend to the reference. Rows are prompt by prompt, each with all latents;
    neighbouring prompts share a slice.
    """
    attending = [run.attends(injection, uuid) for uuid in options.get("uuids", ())]
    if all(attending):
        return [slice(rows)]
    batch = rows // len(attending)
    found: list[slice] = []
    for start in (number * batch for number, attends in enumerate(attending) if attends):
        first = found.pop().start if found and found[-1].stop == start else start
        found.append(slice(first, start + batch))
    return found
