"""Sampling with injections: each run gets a RunState, each step decides which injections are active, and each
evaluation finds its layout.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from uuid import uuid4

import torch

from ....dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from ....dreamcache_core.adapter.strengths import CONSTANT
from ....dreamcache_core.errors import DreamCacheError
from ..node_text import show_text_now
from .caching_pass import cache_noise_level, weights_key
from .guidance import Guider, image_guidance_at
from .injection import Injection
from .layout import Layout, find_layout
from .options import KEY, RUN_KEY, Options, changed, with_options
from .run_state import CurveBySigma, RunState, active_injections, run_state


def begin_run(
    executor: Callable,
    guider: Any,
    sigmas: torch.Tensor,
    extra_args: Options,
    callback: Callable,
    noise: torch.Tensor,
    *args,
    **kwargs,
):
    """A wrapper around the sampler (WrappersMP.SAMPLER_SAMPLE)."""
    model_options = extra_args["model_options"]
    options = model_options["transformer_options"]
    injections: tuple[Injection, ...] = options.get(KEY, ())
    for injection in injections:
        _check_batch(injection, len(noise))
    conditioned, areas = set(), {}
    for name, conds in guider.conds.items():
        for cond in conds:
            if "negative" in name:
                # A UUID of its own: where a positive prompt has an area, ComfyUI copied it here with its UUID.
                cond["uuid"] = uuid4()
            else:
                conditioned.add(cond["uuid"])
            if "area" in cond:
                areas[cond["uuid"]] = tuple(cond["area"])
    sampling = guider.inner_model.model_sampling
    curves = {curve for one in injections for curve in (one.strengths.curve, one.guidance_curve)}
    if isinstance(guider, Guider):
        curves.add(guider.guidance_curve)
    run = replace(
        run_state(options),
        conditioned=frozenset(conditioned),
        areas=areas,
        curves={curve: CurveBySigma.of(curve, sampling, noise.device) for curve in curves - {CONSTANT}},
        ranges={
            injection: tuple(map(sampling.percent_to_sigma, (injection.end_percent, injection.start_percent)))
            for injection in injections
            if (injection.start_percent, injection.end_percent) != (0, 1)
        },
        weights=weights_key(guider.model_patcher),
        keys_values={},
        regions={},
    )
    model_options = with_options(model_options, {RUN_KEY: run})
    extra_args = {**extra_args, "model_options": model_options}
    evaluations = _Evaluations(sampling, model_options["transformer_options"])
    hook = guider.inner_model.diffusion_model.register_forward_pre_hook(evaluations.begin, with_kwargs=True)
    try:
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    finally:
        hook.remove()


def begin_step(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: Options, *args):
    """A wrapper around each step's prediction (WrappersMP.PREDICT_NOISE)."""
    guider, options = executor.class_obj, model_options["transformer_options"]
    run = replace(run_state(options), latents=x, timestep=timestep)
    if run.ranges:
        # The host waits for the device here, once a step, as ComfyUI does for a prompt that has a range.
        sigma = float(timestep.max())
        out_of_range = {one for one, (least, largest) in run.ranges.items() if not least <= sigma <= largest}
        run = replace(run, inactive=frozenset(out_of_range))
    active = active_injections({**options, RUN_KEY: run})
    own_attention = [one for one in active if isinstance(one.adapter, SelfAttentionAdapter)]
    if own_attention:
        sigma = float(timestep.max())
        run = replace(run, sigma=sigma)
        for injection in own_attention:
            cache_noise_level(guider, injection.cache, injection.adapter, sigma)
    scales = {}
    if not isinstance(guider, Guider):  # It has a scale of its own for all injections.
        scales = {injection: image_guidance_at(injection, run, timestep) for injection in active}
    run = replace(run, image_guidance=scales)
    if RUN_KEY in options:
        # The run's own options, which other nodes may keep state in: each step must hand on the same object.
        options[RUN_KEY] = run
    else:
        model_options = with_options(model_options, {RUN_KEY: run})
    changes = {}
    if any(scale != 1 and injection.rows != "conditioned" for injection, scale in scales.items()):
        # The third evaluation is of the negative prompt, which ComfyUI leaves out at a CFG of 1.
        changes["disable_cfg1_optimization"] = True
    with _without_compiling(), changed(model_options, changes):
        return executor(x, timestep, model_options, *args)


class _Evaluations:
    """Prepares every evaluation of the U-Net in a run, whoever asks for it.

    `sampling`: the model's `model_sampling`. `options`: the run's transformer_options.
    """

    def __init__(self, sampling: Any, options: Options) -> None:
        self._sampling, self._options = sampling, options
        self._warned = False

    def begin(
        self, _: torch.nn.Module, args: tuple[Any, ...], arguments: Options
    ) -> tuple[tuple[Any, ...], Options] | None:
        """A forward pre-hook of the U-Net: adds to its options what the blocks need to know."""
        options = arguments.get("transformer_options") or {}
        if not options.get(KEY):
            if KEY not in options:
                self._warn()
            return None
        # Options that another node copied when it patched the model know nothing of this run.
        run = run_state(options if RUN_KEY in options else self._options)
        run = replace(run, layout=self._layout(args[0], run, options))
        if RUN_KEY in options and run.layout is None:
            return None
        return args, {**arguments, "transformer_options": {**options, RUN_KEY: run}}

    def _layout(self, x: torch.Tensor, run: RunState, options: Options) -> Layout | None:
        """`x`: the U-Net's input, (rows, channels, height, width)."""
        prompts, latents = options.get("uuids", ()), run.latents
        if latents is None or run.is_usual(x, options):
            return None
        scaled = self._sampling.calculate_input(run.timestep, latents).to(x)
        return find_layout(x[:, : latents.shape[1]], scaled, len(prompts))

    def _warn(self) -> None:
        if not self._warned and active_injections(self._options):
            self._warned = True
            show_text_now(
                "Another node evaluates the model without the reference, perhaps because it copied the model's options "
                "before Apply DreamCache: put that node after Apply DreamCache."
            )


def _check_batch(injection: Injection, latents: int) -> None:
    region, references = injection.region, len(injection.cache)
    if region is not None and len(region) not in (1, latents):
        raise DreamCacheError(
            f"The region of Apply DreamCache holds {len(region)} masks and the batch {latents} latents: connect one "
            "mask for all, or one for each latent."
        )
    if injection.cache.per_latent and references != latents:
        raise DreamCacheError(
            f"There are {references} references, one for each latent, and {latents} latents in the batch: make as many "
            "of each, or set mode to concatenate in DreamCache Combine References."
        )


def _without_compiling() -> AbstractContextManager:
    """Disables compiled graphs: ComfyUI reuses one whatever transformer_options say, which would sample with the
    references of an earlier run, or with none.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return set_stance("force_eager") if set_stance else nullcontext()
