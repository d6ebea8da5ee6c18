"""The blocks that an adapter sits on: their image tokens attend to the reference beside themselves."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch.utils.hooks import RemovableHandle

from ....dreamcache_core.adapter.network import AdapterLayer, Attention
from ....dreamcache_core.adapter.self_attention import SelfAttentionAdapter, SelfAttentionLayer
from ....dreamcache_core.unet import TransformerLayer
from .injection import Injection
from .options import Options
from .run_state import CachedKeysValues, RunState, active_injections, rows_of_latents, run_state


class BlockHooks:
    """Lets the first block of adapted transformers attend to the references that its options name, while a model is
    loaded.

    Hooks work whatever other nodes put in place of a block's forward, in whatever order, and leave it alone.
    """

    def __init__(self, layers: tuple[TransformerLayer, ...]) -> None:
        self._layers = layers
        self._handles: list[RemovableHandle] = []

    @property
    def injection(self) -> PatcherInjection:
        """Puts the hooks on a network and takes them off again, as ComfyUI loads and unloads it."""
        return PatcherInjection(self._put_on, self._take_off)

    def _put_on(self, model: ModelPatcher) -> None:
        self._take_off(model)
        for layer in self._layers:
            transformer = model.get_model_object(f"diffusion_model.{layer.name}")
            hook = partial(_attend_too, layer.name, transformer)
            self._handles.append(transformer.transformer_blocks[0].register_forward_pre_hook(hook, with_kwargs=True))

    def _take_off(self, _: ModelPatcher) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _attend_too(
    layer: str, transformer: torch.nn.Module, _: torch.nn.Module, args: tuple[Any, ...], arguments: Options
) -> tuple[tuple[Any, ...], Options] | None:
    """A forward pre-hook of a block: lets it attend to the references, by a patch of its self-attention."""
    options = arguments.get("transformer_options") or {}
    injections = [injection for injection in active_injections(options) if injection.strength_at(layer)]
    if not injections or _is_hooked(options):
        return None
    patches, is_patched = options.get("patches", {}), _is_patched(options)
    if not is_patched and _is_whole(injections, layer, len(args[0]), options):
        patch = partial(_attend_to_both, layer, transformer, injections[0])
        replaced = options.get("patches_replace", {})
        attention = {**replaced.get("attn1", {}), options["block"]: patch}
        changes = {"patches_replace": {**replaced, "attn1": attention}}
    else:
        patch = partial(_add_references, layer, transformer, injections, args[0], is_patched)
        # Last, so that patches which rearrange the self-attention's tokens have put them back.
        changes = {"patches": {**patches, "attn1_output_patch": [*patches.get("attn1_output_patch", ()), patch]}}
    return args, {**arguments, "transformer_options": {**options, **changes}}


def _is_hooked(options: Options) -> bool:
    """Whether hooks of another clone of this model have added the references."""
    patches = [
        *options.get("patches", {}).get("attn1_output_patch", ()),
        options.get("patches_replace", {}).get("attn1", {}).get(options.get("block")),
    ]
    return any(isinstance(patch, partial) and patch.func in (_add_references, _attend_to_both) for patch in patches)


def _is_whole(injections: list[Injection], layer: str, rows: int, options: Options) -> bool:
    """Whether every image token attends to the references at full strength, by the model's own attention: then nobody
    needs its result without them, and the block computes its attention once.
    """
    run, first = run_state(options), injections[0]
    return (
        len(injections) == 1
        and isinstance(first.adapter, SelfAttentionAdapter)
        and first.strength_at(layer) == 1
        and first.region is None
        and first.strengths.curve not in run.curves
        and run.observer is None
        and "block" in options
        and _attending_rows(first, rows, options, run) == [slice(rows)]
    )


def _is_patched(options: Options) -> bool:
    """Whether other nodes change this block's self-attention."""
    replaced = options.get("patches_replace", {}).get("attn1", {})
    place = options.get("block")
    if place in replaced or (place and (*place, options.get("block_index", 0)) in replaced):
        return True
    return any(options.get("patches", {}).get(name) for name in ("attn1_patch", "attn1_output_patch"))


def _attend_to_both(
    layer: str,
    transformer: torch.nn.Module,
    injection: Injection,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """An attn1_replace: the block's own attention, to the references beside its image tokens.

    `query`, `key`, `value`: of the image tokens, (prompts · batch, tokens, channels).
    """
    adapter = SelfAttentionLayer(transformer)
    cached = _cached(adapter, injection, layer, query, options)
    return adapter.attend_jointly(query, key, value, cached.key, cached.value, _attention(options), cached.bias)


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

    run = run_state(options)
    result = self_attention.clone()
    for injection in injections:
        adapter: AdapterLayer | SelfAttentionLayer
        if isinstance(injection.adapter, SelfAttentionAdapter):
            adapter = SelfAttentionLayer(transformer)
        else:
            adapter = injection.adapter.model[layer]
        cached = _cached(adapter, injection, layer, x, options)
        for rows in _attending_rows(injection, len(x), options, run):
            attend = _attention(options)
            if run.observer:
                tokens = cached.key.shape[1]
                attend = run.observer.observe(attend, injection, layer, tokens, rows, x, options)
            attended = cached.map(itemgetter(rows)) if len(cached.key) == len(x) else cached
            own = self_attention[rows]
            if isinstance(adapter, SelfAttentionLayer):
                # Patched by others, it isn't what the attention to the reference must be compared with.
                output = None if is_patched else own
                change = adapter.forward(x[rows], output, attended.key, attended.value, attend, attended.bias)
            else:
                change = adapter(x[rows], own, attended.key, attended.value, attend, attended.bias)
            if injection.region is not None:
                change *= run.region(injection.region, x, options)[rows]
            if injection.strengths.curve in run.curves:
                change *= run.curves[injection.strengths.curve].at(options["sigmas"][:1]).to(x)
            result[rows].add_(change, alpha=injection.strength_at(layer))
    return result


def _attention(options: Options) -> Attention:
    """ComfyUI's attention, as it computes that of the block."""

    def attention(query, key, value, heads, bias=None):
        precision = options.get("attn_precision")
        return optimized_attention(
            query, key, value, heads, mask=bias, attn_precision=precision, transformer_options=options
        )

    return attention


def _cached(
    adapter: AdapterLayer | SelfAttentionLayer, injection: Injection, layer: str, x: torch.Tensor, options: Options
) -> CachedKeysValues:
    """The keys and values of the references for the latents evaluated now. `x`: any tensor with their rows."""
    cached = _keys_values(adapter, injection, layer, x, options, run_state(options))
    return cached.map(partial(rows_of_latents, x=x, options=options)) if injection.cache.per_latent else cached


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
    key = (injection, layer, x.device, x.dtype)
    cached, cache = run.keys_values.get(key), injection.cache
    sigma = _noise_level(options, run) if isinstance(adapter, SelfAttentionLayer) else None
    if cached is None or cached.sigma != sigma:
        if isinstance(adapter, SelfAttentionLayer) and sigma is not None:
            # The norm's statistics are those of an entire reference, so a mask chooses its tokens afterwards.
            each = [adapter.keys_values(batch.features_at(sigma, layer, run.weights).to(x)) for batch in cache.batches]
            keys, values = (cache.gather(layer, tensors) for tensors in zip(*each, strict=True))
        else:
            keys, values = adapter.keys_values(cache.tokens(layer).to(x))
        bias = cache.bias(layer)
        cached = CachedKeysValues(keys, values, None if bias is None else bias.to(x), sigma)
        run.keys_values[key] = cached
    return cached


def _noise_level(options: Options, run: RunState) -> float:
    """The sigma of this evaluation."""
    return float(options["sigmas"].max()) if run.sigma is None else run.sigma


def _attending_rows(injection: Injection, rows: int, options: Options, run: RunState) -> list[slice]:
    """The rows of the evaluated batch that attend to the reference. Neighbouring rows share a slice."""
    if all(run.attends(injection, uuid) for uuid in options.get("uuids", ())):
        return [slice(rows)]
    found: list[slice] = []
    for row, uuid in enumerate(run.prompts(rows, options)):
        if run.attends(injection, uuid):
            first = found.pop().start if found and found[-1].stop == row else row
            found.append(slice(first, row + 1))
    return found
