"""Other people's nodes beside the reference: each does what it does alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.context_windows import ContextFuseMethods, ContextSchedules
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_tcfg import TCFG
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.combining import combine
from dreamcache.nodes.host.patching.apply import inject
from support.graph import difference
from support.neighbours import (
    counts_in_options,
    keeps_differences_by_uuid,
    remembers_options,
    replaces_sampling_function,
    swaps_forward,
    swaps_prompts,
)
from support.studio import Studio, guider, sample

WEAK = 0.02
"""A strength at which image guidance changes next to nothing, so that anything else shows."""


ORDERS = (lambda model, ours, theirs: theirs(ours(model)), lambda model, ours, theirs: ours(theirs(model)))
"""Apply DreamCache before the other node, and after it."""


def tcfg(model: ModelPatcher) -> ModelPatcher:
    return TCFG.execute(model)[0]


@pytest.mark.parametrize("other", [tcfg, replaces_sampling_function])
def test_image_guidance_beside_nodes_that_change_the_negative_prediction(
    studio: Studio, applied: Callable, other: Callable
) -> None:
    """The third term is a difference of two predictions, which must come out of the same kind of evaluation."""

    def push(order: Callable, other: Callable[[ModelPatcher], ModelPatcher]) -> float:
        apply = partial(applied, strength=WEAK)
        guided = order(studio.model, partial(apply, image_guidance=3.0), other)
        return difference(sample(guided), sample(order(studio.model, apply, other)))

    alone = push(ORDERS[0], lambda model: model)
    for order in ORDERS:
        assert 0.5 * alone < push(order, other) < 2 * alone


def test_image_guidance_beside_nodes_that_cache_steps(studio: Studio, applied: Callable) -> None:
    """What they keep by the prompt's UUID is no answer to an evaluation that leaves the reference out."""
    model = keeps_differences_by_uuid(applied(studio.model))
    pushed = sample(keeps_differences_by_uuid(applied(studio.model, image_guidance=2.0)))
    assert difference(pushed, sample(model, guider(model))) < 1e-4
    assert difference(pushed, sample(keeps_differences_by_uuid(applied(studio.model)))) > 0.01


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_image_guidance_beside_comfyuis_caches_of_steps(studio: Studio, applied: Callable, node: Any) -> None:
    """A step that is skipped gives an old prediction, from which none of this step can be subtracted."""

    def skips(model: ModelPatcher) -> ModelPatcher:
        return node.execute(model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)[0]

    apply, run = partial(applied, strength=WEAK), partial(sample, steps=6)
    model = skips(apply(studio.model))
    without = run(model)
    assert difference(without, run(apply(studio.model))) > 0.1
    pushed = difference(run(model, guider(model)), without)
    for order in ORDERS:
        guided = order(studio.model, partial(apply, image_guidance=2.0), skips)
        assert 0.5 * pushed < difference(run(guided), without) < 2 * pushed


@pytest.mark.parametrize("guide", [comfy.samplers.CFGGuider, guider], ids=["CFG", "DreamCache Guider"])
@pytest.mark.parametrize("image_guidance", [1.0, 2.0])
def test_nodes_may_keep_state_in_the_options_of_a_run(
    studio: Studio, applied: Callable, guide: Callable, image_guidance: float
) -> None:
    for order in ORDERS:
        calls: list[int] = []
        model = order(
            studio.model, partial(applied, image_guidance=image_guidance), partial(counts_in_options, calls=calls)
        )
        sample(model, guide(model))
        sample(model, guide(model))
        assert calls == [1, 2, 3, 4, 1, 2, 3, 4]


def test_options_are_what_they_were_after_a_step(studio: Studio, applied: Callable) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def look(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any], *args: Any) -> Any:
        before = set(model_options)
        result = executor(x, timestep, model_options, *args)
        seen.append((before, set(model_options)))
        return result

    model = applied(studio.model, image_guidance=2.0).clone()
    model.wrappers[WrappersMP.PREDICT_NOISE] = {"test": [look], **model.wrappers[WrappersMP.PREDICT_NOISE]}
    sample(model, guider(model))
    sample(model)
    assert len(seen) == 8
    assert all(before == after for before, after in seen)


def test_the_guider_beside_nodes_that_evaluate_prompts_in_their_own_way(studio: Studio, applied: Callable) -> None:
    pushed = sample(swaps_prompts(applied(studio.model, image_guidance=2.0)))
    model = swaps_prompts(applied(studio.model))
    assert difference(sample(model, guider(model)), pushed) < 1e-4
    assert difference(sample(model), pushed) > 0.01
    model = applied(studio.model)
    assert difference(sample(model, guider(model)), pushed) > 0.01


def test_the_guider_beside_nodes_that_replace_the_sampling_function(studio: Studio, applied: Callable) -> None:
    for order in ORDERS:
        model = order(studio.model, applied, replaces_sampling_function)
        pushed = sample(order(studio.model, partial(applied, image_guidance=2.0), replaces_sampling_function))
        assert difference(sample(model, guider(model)), pushed) < 1e-4
        assert difference(sample(model), pushed) > 0.01


@pytest.mark.parametrize("guide", [comfy.samplers.CFGGuider, guider], ids=["CFG", "DreamCache Guider"])
def test_options_that_others_copied_know_the_run(studio: Studio, applied: Callable, guide: Callable) -> None:
    """Before: ranges and rows were ignored with them, and the model's own attention failed."""
    predictions: list[tuple[torch.Tensor, torch.Tensor]] = []
    settings = {"start_percent": 0.3, "rows": "conditioned"}
    model = remembers_options(applied(studio.model, **settings), predictions)
    drawn = sample(model, guide(model))
    assert len(predictions) == 4
    assert all(torch.equal(*pair) for pair in predictions)
    assert torch.equal(sample(model, guide(model)), drawn)


def test_options_that_others_copied_without_the_reference_are_told_of(
    studio: Studio, applied: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    predictions: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = applied(remembers_options(studio.model, predictions))
    sample(model)
    assert not any(torch.equal(*pair) for pair in predictions)
    (warning,) = [record.getMessage() for record in caplog.records if "DreamCache" in record.getMessage()]
    assert warning.endswith("put that node after Apply DreamCache.")
    caplog.clear()
    sample(remembers_options(applied(studio.model), predictions))
    assert not [record for record in caplog.records if "DreamCache" in record.getMessage()]


def test_a_copy_of_options_shares_the_reference(studio: Studio) -> None:
    """Adapter and features are large, and a run knows an injection by its identity."""
    injection = studio.injection()
    assert copy.deepcopy({"options": (injection,)})["options"][0] is injection


def test_a_forward_that_others_swap_and_restore_in_any_order(studio: Studio, applied: Callable) -> None:
    name = "output_blocks.4.1.transformer_blocks.0"
    model, plain = applied(studio.model), sample(studio.model)
    expected = sample(model)
    restore = swaps_forward(model, name)  # while the model is still loaded with its reference
    assert torch.equal(sample(studio.model), plain)
    assert torch.equal(sample(model), expected)
    restore()
    assert torch.equal(sample(model), expected)
    assert torch.equal(sample(studio.model), plain)
    block = studio.model.model.diffusion_model.get_submodule(name)
    assert block.forward.__func__ is type(block).forward
    del block.forward
    assert not block._forward_pre_hooks


def test_merging_keeps_the_reference_of_the_first_model_only(studio: Studio, applied: Callable) -> None:
    """ComfyUI takes nothing but weights of the second."""

    def merged(*models: ModelPatcher) -> torch.Tensor:
        return sample(ModelMergeSimple().merge(*models, ratio=0.5)[0])

    referenced = applied(studio.model)
    assert difference(merged(referenced, studio.model), sample(referenced)) < 1e-4
    assert torch.equal(merged(studio.model, referenced), merged(studio.model, studio.model))


def windowed(model: ModelPatcher) -> ModelPatcher:
    """ComfyUI's context windows of 4 latents, which overlap by 2."""
    inputs = {"context_schedule": ContextSchedules.STATIC_STANDARD, "context_stride": 1, "closed_loop": False}
    return ContextWindowsManualNode.execute(
        model,
        context_length=4,
        context_overlap=2,
        **inputs,
        fuse_method=ContextFuseMethods.RELATIVE,
        dim=0,
        freenoise=False,
    )[0]


@pytest.mark.parametrize("own", [False, True], ids=["trained", "own attention"])
def test_windows_over_a_batch_take_the_latents_own_references_and_masks(studio: Studio, own: bool) -> None:
    one, other = studio.cache(), studio.cache(seed=2)

    def apply(*caches: ReferenceCache, region: torch.Tensor | None = None) -> torch.Tensor:
        cache = combine(caches, [1.0] * len(caches), per_latent=len(caches) > 1)
        injection = studio.injection(cache=cache, region=region)
        if own:
            injection = replace(injection, adapter=SelfAttentionAdapter())
        return sample(windowed(inject(studio.model, injection)), batch=6)

    first, second = apply(one), apply(other)
    mixed = apply(one, other, other, one, one, other)
    for number, expected in enumerate((first, second, second, first, first, second)):
        assert difference(mixed[number], expected[number]) < 1e-4
    region = torch.zeros(6, 16, 16)
    region[1::2] = 1
    masked, plain = apply(one, region=region), sample(windowed(studio.model), batch=6)
    for number in range(6):
        assert difference(masked[number], (first if number % 2 else plain)[number]) < 1e-4
