"""Image guidance: the paper's formula, by Apply DreamCache and by DreamCache Guider, in the course of sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.adapter.strengths import CONSTANT, LIST, Curve, make_curve
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.guidance import Guider
from dreamcache.nodes.host.patching.injection import Rows
from support.graph import difference
from support.studio import Studio, prompt

FIRST_HALF = make_curve(LIST, "1 1 1 1 0 0 0")
"""4 steps are evaluated at 0, 33, 67 and 100 %."""


def ours(model: ModelPatcher, cfg: float, image_guidance: float, curve: Curve = CONSTANT) -> Guider:
    guider = Guider(model)
    guider.image_guidance, guider.guidance_curve = image_guidance, curve
    guider.set_cfg(cfg)
    return guider


def comfyui(model: ModelPatcher, cfg: float) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_cfg(cfg)
    return guider


def predict(guider: comfy.samplers.CFGGuider, percent: float = 0.0) -> torch.Tensor:
    """The guided prediction at one noise level: denoised latents."""
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = torch.tensor([min(sampling.percent_to_sigma(percent), float(sampling.sigma_max)), 0.0])

    def once(model: Callable, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any], **_: Any):
        return model(x, sigmas[:1].expand(len(x)), **extra_args)

    return sample(guider, comfy.samplers.KSAMPLER(once), sigmas)


def sample(guider: comfy.samplers.CFGGuider, sampler: comfy.samplers.Sampler, sigmas: torch.Tensor) -> torch.Tensor:
    guider.set_conds([[prompt(1), {}]], [[prompt(2), {}]])
    latent = torch.zeros(2, 4, 8, 16)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True)


def evaluations(guider: comfy.samplers.CFGGuider) -> list[list[int]]:
    """How many rows each evaluation of the model has, in each of 4 steps."""
    rows: dict[float, list[int]] = {}

    def count(apply_model: Callable, args: dict[str, Any]) -> torch.Tensor:
        rows.setdefault(float(args["timestep"][0]), []).append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    guider.model_options = {**guider.model_options, "model_function_wrapper": count}
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sample(guider, comfy.samplers.sampler_object("euler"), comfy.samplers.calculate_sigmas(sampling, "normal", 4))
    return list(rows.values())


def test_the_guider_samples_the_papers_three_terms_and_so_does_apply(studio: Studio) -> None:
    injection = studio.injection(image_guidance=2.5)
    guided, reading = (inject(studio.model, replace(injection, image_guidance=by)) for by in (2.5, 1.0))
    none = predict(comfyui(studio.model, 0.0))
    negative, positive = predict(comfyui(reading, 0.0)), predict(comfyui(reading, 1.0))
    expected = none + 4.0 * (positive - negative) + 2.5 * (negative - none)
    assert difference(predict(ours(reading, 4.0, 2.5)), expected) < 1e-5
    assert difference(predict(comfyui(guided, 4.0)), expected) < 1e-5
    assert difference(predict(ours(reading, 4.0, 1.0)), expected) > 0.01
    # The guider's scale takes the place of the model's own.
    assert torch.equal(predict(ours(guided, 4.0, 2.5)), predict(ours(reading, 4.0, 2.5)))
    assert torch.equal(predict(ours(guided, 4.0, 1.0)), predict(comfyui(reading, 4.0)))
    assert torch.equal(predict(ours(studio.model, 4.0, 2.5)), predict(comfyui(studio.model, 4.0)))


@pytest.mark.parametrize("rows", ["conditioned", "unconditioned"])
def test_the_guider_pushes_as_apply_does_where_one_prompt_reads_nothing(studio: Studio, rows: Rows) -> None:
    injection = studio.injection(rows=rows, image_guidance=2.5)
    guided, reading = (inject(studio.model, replace(injection, image_guidance=by)) for by in (2.5, 1.0))
    expected = predict(comfyui(guided, 4.0))
    assert difference(predict(ours(reading, 4.0, 2.5)), expected) < 1e-5
    assert difference(predict(comfyui(reading, 4.0)), expected) > 0.01


@pytest.mark.parametrize(("percent", "scale"), [(0.0, 2.5), (0.5, 1.75), (0.75, 1.375)])
def test_image_guidance_follows_its_curve(studio: Studio, percent: float, scale: float) -> None:
    injection = studio.injection(image_guidance=scale)
    expected = predict(comfyui(inject(studio.model, injection), 4.0), percent)
    falling = inject(studio.model, replace(injection, image_guidance=2.5, guidance_curve=(1.0, 0.0)))
    assert difference(predict(comfyui(falling, 4.0), percent), expected) < 1e-5
    assert difference(predict(ours(falling, 4.0, 2.5, (1.0, 0.0)), percent), expected) < 1e-5


def test_image_guidance_of_1_costs_nothing(studio: Studio) -> None:
    injection = studio.injection(image_guidance=2.5)
    guided, off_in_the_second_half, reading = (
        inject(studio.model, each)
        for each in (injection, replace(injection, guidance_curve=FIRST_HALF), replace(injection, image_guidance=1.0))
    )
    assert evaluations(comfyui(guided, 4.0)) == [[2, 1]] * 4
    assert evaluations(comfyui(off_in_the_second_half, 4.0)) == [[2, 1], [2, 1], [2], [2]]
    assert evaluations(ours(reading, 4.0, 2.5, FIRST_HALF)) == [[3], [3], [2], [2]]
    # A CFG of 1 needs no negative prompt, but for the third term.
    assert evaluations(comfyui(off_in_the_second_half, 1.0)) == [[2, 1], [2, 1], [1], [1]]
    assert evaluations(ours(reading, 1.0, 2.5, FIRST_HALF)) == [[3], [3], [1], [1]]
    assert evaluations(comfyui(reading, 1.0)) == evaluations(ours(reading, 1.0, 1.0)) == [[1]] * 4
