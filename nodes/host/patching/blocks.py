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
from ....dreamcache_core.adapter.self_attention import SelfAttentionAdapter, SelfAttentionLayer
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
            transformer = model.get_model_object(f"diffusion_model.{layer.name}")
            model.add_object_patch(name, _InjectedForward(forward, layer.name, transformer))


@dataclass(frozen=True, eq=False)
class _InjectedForward:
    """The forward of an adapted transformer's first block; the block's own where nothing is injected."""

    forward: Callable
    layer: str
    transformer: torch.nn.Module

    def __call__(self, x: torch.Tensor, context: Any = None, transformer_options: Options | None = None):
        options = transformer_options or {}
        injections = [injection for injection in active_injections(options) if injection.strength_at(self.layer)]
        if not injections:
            return self.forward(x, context=context, transformer_options=options)
        # Last of all patches of the self-attention, so that those which rearrange its tokens have put them back.
        patches = options.get("patches", {})
        patch = partial(_add_references, self.layer, self.transformer, injections, x, _is_patched(options))
        patches = {**patches, "attn1_output_patch": [*patches.get("attn1_output_patch", ()), patch]}
        return self.forward(x, context=context, transformer_options={**options, "patches": patches})


def _is_patched(options: Options) -> bool:
    """Whether other nodes change this block's self-attention."""
    replaced = options.get("patches_replace", {}).get("attn1", {})
    place = options.get("block")
    return (
        any(options.get("patches", {}).get(name) for name in ("attn1_patch", "attn1_output_patch"))
        or place in replaced
        or (place and (*place, options.get("block_index", 0)) in replaced)
    )


def _add_references(
    layer: str,
    transformer: torch.nn.Module,
    injections: list[Injection],
    x: torch.Tensor,
    is_patched: bool,
    self_attention: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """An attn1_output_patch. Several injections add up: each adds the change that it would add alone.

    `x`: the block's image tokens; `self_attention`: its output; both (prompts · batch, tokens, channels).
    `is_patched`: whether other nodes have changed that output.
    """

    def attention(query, key, value, heads, bias=None):
        precision = options.get("attn_precision")
        return optimized_attention(
            query, key, value, heads, mask=bias, attn_precision=precision, transformer_options=options
        )

    run = run_state(options)
    result = self_attention.clone()
    for injection in injections:
        own = isinstance(injection.adapter, SelfAttentionAdapter)
        adapter = SelfAttentionLayer(transformer) if own else injection.adapter.model[layer]
        cached = _keys_values(adapter, injection, layer, x, options, run)
        for rows in _attending_rows(injection, len(x), options, run):
            attend: Attention = attention
            if run.observer:
                tokens = cached.key.shape[1]
                attend = run.observer.observe(attention, injection, layer, tokens, rows, x, options)
            # Patched by others, it is no longer what the model's own attention to the reference must be compared with.
            unchanged = None if own and is_patched else self_attention[rows]
            change = adapter.forward(x[rows], unchanged, cached.key, cached.value, attend, cached.bias)
            if injection.region is not None:
                change *= run.region(injection.region, x, options)[rows]
            if injection.strengths.curve in run.curves:
                change *= run.curves[injection.strengths.curve].at(options["sigmas"][:1]).to(x)
            result[rows].add_(change, alpha=injection.strength_at(layer))
    return result


def _keys_values(
    adapter: AdapterLayer | SelfAttentionLayer,
    injection: Injection,
    layer: str,
    x: torch.Tensor,
    options: Options,
    run: RunState,
) -> CachedKeysValues:
    """The keys and values of an injection's references. They are computed once in a run for a trained adapter, and once
    at each noise level for the model's own attention.
    """
    key, sigma = (injection, layer, x.device, x.dtype), None
    if injection.uses_noise_levels:
        sigma = float(options["sigmas"].max()) if run.sigma is None else run.sigma
    cached = run.keys_values.get(key)
    if cached is None or cached.sigma != sigma:
        cache = injection.cache
        if isinstance(adapter, SelfAttentionLayer):
            # The norm's statistics are those of an entire reference, so a mask chooses its tokens afterwards.
            each = [adapter.keys_values(batch.features_at(sigma, layer, run.weights).to(x)) for batch in cache.batches]
            keys, values = (cache.gather(layer, tensors) for tensors in zip(*each, strict=True))
        else:
            keys, values = adapter.keys_values(cache.tokens(layer).to(x))
        bias = cache.bias(layer)
        cached = CachedKeysValues(keys, values, None if bias is None else bias.to(x), sigma)
        run.keys_values[key] = cached
    return cached


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
