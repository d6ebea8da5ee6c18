"""Other people's nodes beside the reference: each does what it does alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.context_windows import ContextFuseMethods, ContextSchedules
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_tcfg import TCFG
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.combining import combine
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.guidance import Guider
from support.graph import difference
from support.studio import Studio, prompt

WEAK = 0.02
"""A strength at which image guidance changes next to nothing, so that anything else shows."""


def sample(model: ModelPatcher, guider: comfy.samplers.CFGGuider | None = None, batch: int = 1) -> torch.Tensor:
    """Latents after 4 steps."""
    guider = guider or comfy.samplers.CFGGuider(model)
    guider.set_conds([[prompt(1), {}]], [[prompt(2), {}]])
    guider.set_cfg(4.0)
    latent = torch.zeros(batch, 4, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)


@pytest.fixture(params=["trained", "own attention"])
def applied(request: pytest.FixtureRequest, studio: Studio) -> Callable[..., ModelPatcher]:
    """Apply DreamCache, with a trained adapter or the model's own attention."""
    cache = studio.cache()

    def apply(model: ModelPatcher, **settings: Any) -> ModelPatcher:
        injection = studio.injection(cache=cache, **settings)
        if request.param == "own attention":
            injection = type(injection)(SelfAttentionAdapter(), cache, **settings)
        return inject(model, injection)

    return apply


def tcfg(model: ModelPatcher) -> ModelPatcher:
    return TCFG.execute(model)[0]


def test_image_guidance_beside_nodes_that_change_the_negative_prediction(studio: Studio, applied: Callable) -> None:
    """The third term is a difference of two predictions, which must come out of the same kind of evaluation."""

    def push(change: Callable[[ModelPatcher], ModelPatcher]) -> float:
        return difference(
            sample(change(applied(studio.model, strength=WEAK, image_guidance=3.0))),
            sample(change(applied(studio.model, strength=WEAK))),
        )

    alone = push(lambda model: model)
    assert 0.5 * alone < push(tcfg) < 2 * alone


def keeps_differences_by_uuid(model: ModelPatcher) -> ModelPatcher:
    """What caches of steps do: in every other step, the change that the U-Net made in the step before, by prompt."""
    model = model.clone()
    kept: dict[Any, torch.Tensor] = {}
    seen: dict[float, int] = {}

    def evaluate(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        options = kwargs.get("transformer_options") or args[-1]
        step = seen.setdefault(float(options["sigmas"][0]), len(seen))
        uuids = options["uuids"]
        if step % 2 and all(uuid in kept for uuid in uuids):
            return x + torch.cat([kept[uuid] for uuid in uuids])
        result = executor(x, *args, **kwargs)
        for uuid, change in zip(uuids, (result - x).chunk(len(uuids)), strict=True):
            kept[uuid] = change
        return result

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", evaluate)
    return model


def test_image_guidance_beside_nodes_that_cache_steps(studio: Studio, applied: Callable) -> None:
    """What they keep by the prompt's UUID is no answer to an evaluation that leaves the reference out."""
    guider = Guider(keeps_differences_by_uuid(applied(studio.model)))
    guider.image_guidance = 3.0
    pushed = sample(keeps_differences_by_uuid(applied(studio.model, image_guidance=3.0)))
    assert difference(pushed, sample(guider.model_patcher, guider=guider)) < 1e-4
    assert difference(pushed, sample(keeps_differences_by_uuid(applied(studio.model)))) > 0.01


def test_nodes_may_keep_state_in_the_options_of_a_run(studio: Studio, applied: Callable) -> None:
    calls: list[int] = []

    def count(args: dict[str, Any]) -> torch.Tensor:
        options = args["model_options"]
        options["calls"] = options.get("calls", 0) + 1
        calls.append(options["calls"])
        return args["denoised"]

    model = applied(studio.model)
    model.set_model_sampler_post_cfg_function(count)
    sample(model)
    sample(model)
    assert calls == [1, 2, 3, 4, 1, 2, 3, 4]


def swaps_forward(model: ModelPatcher, name: str) -> Callable[[], None]:
    """Replace a block's forward, as some packs do before a run. Returns a function that restores what was found."""
    block = model.model.diffusion_model.get_submodule(name)
    found = block.forward
    block.forward = lambda *args, **kwargs: found(*args, **kwargs)

    def restore() -> None:
        block.forward = found

    return restore


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


def test_a_part_of_the_batch_that_cannot_be_told_is_refused(studio: Studio) -> None:
    cache = combine([studio.cache(), studio.cache(seed=2)], [1.0, 1.0], per_latent=True)
    model = inject(studio.model, studio.injection(cache=cache))

    def one_by_one(apply_model: Callable, args: dict[str, Any]) -> torch.Tensor:
        def part(number: int) -> torch.Tensor:
            conditioning = {**args["c"], "c_crossattn": args["c"]["c_crossattn"][number::2]}
            return apply_model(args["input"][number::2], args["timestep"][number::2], **conditioning)

        return torch.stack([part(0), part(1)], dim=1).flatten(0, 1)

    model.set_model_unet_function_wrapper(one_by_one)
    with pytest.raises(DreamCacheError, match=r"Another node evaluates 1 latents at a time where the batch has 2"):
        sample(model, batch=2)
