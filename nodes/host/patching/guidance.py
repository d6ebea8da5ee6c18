"""Image guidance: the third term of guidance, which pushes towards the reference (paper, section 3.4)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from uuid import uuid5

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ....dreamcache_core.adapter.strengths import CONSTANT, Curve
from .injection import Injection
from .options import KEY, RUN_KEY, Options, changed, with_options
from .run_state import RunState, active_injections, run_state

_SAMPLING_FUNCTION = comfy.samplers.sampling_function
"""ComfyUI's own. Some nodes put theirs in its place."""
_BATCH_FUNCTION = "sampler_calc_cond_batch_function"
"""ComfyUI's option for a function that evaluates the prompts in place of its own."""
_LAST = "sampler_post_cfg_function"
"""ComfyUI's option for functions that change what CFG has combined."""
_AROUND_THE_MODEL = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
"""Where ComfyUI lets nodes wrap an evaluation of the model."""
_COMPILING = "torch.compile"
"""Key of ComfyUI's wrapper that compiles a model, which leaves its predictions as they are."""


def guide_by_image(injection: Injection, args: Options) -> torch.Tensor:
    """A post-CFG function that adds the third term of guidance for one injection. The other two contain it with a scale
    of 1 already, so it adds

        (s_image - 1) · (D(reference, prompt) - D(no reference, prompt))

    in denoised latents D, for the negative prompt; if that doesn't attend to the reference, for the positive.
    """
    model_options = args["model_options"]
    run = run_state(model_options["transformer_options"])
    scale = run.image_guidance.get(injection, 1)
    if scale == 1:
        return args["denoised"]
    row = "uncond" if args["uncond"] and injection.rows != "conditioned" else "cond"
    evaluate = partial(_evaluate_again, args, args[row])
    without = evaluate(replace(run, inactive=run.inactive | {injection}))
    # Other nodes may change or keep predictions, and what is subtracted must be like them.
    with_reference = evaluate(run) if _changes_predictions(model_options) else args[f"{row}_denoised"]
    return args["denoised"] + (scale - 1) * (with_reference - without)


def _changes_predictions(model_options: Options) -> bool:
    """Whether other nodes change predictions between the model and CFG, or may give others or none in their place."""
    wrappers = model_options["transformer_options"].get("wrappers", {})
    return (
        _evaluates_in_its_own_way(model_options)
        or bool(model_options.get("sampler_pre_cfg_function"))
        or any(wrappers.get(place, {}).keys() - {_COMPILING} for place in _AROUND_THE_MODEL)
    )


def _evaluates_in_its_own_way(model_options: Options) -> bool:
    """Whether another node evaluates the prompts for CFG."""
    return _BATCH_FUNCTION in model_options or comfy.samplers.sampling_function is not _SAMPLING_FUNCTION


def _evaluate_again(args: Options, conds: list, run: RunState) -> torch.Tensor:
    """Another prediction for these conds, under UUIDs of its own: other nodes keep what they computed by UUID."""
    injections = args["model_options"]["transformer_options"][KEY]
    left_out = [number for number, injection in enumerate(injections) if injection in run.inactive]
    renamed = {cond["uuid"]: uuid5(cond["uuid"], f"{KEY} {left_out}") for cond in conds}
    run = replace(
        run,
        conditioned=run.conditioned | {new for old, new in renamed.items() if old in run.conditioned},
        areas={**run.areas, **{new: run.areas[old] for old, new in renamed.items() if old in run.areas}},
    )
    conds = [{**cond, "uuid": renamed[cond["uuid"]]} for cond in conds]
    options = with_options(args["model_options"], {RUN_KEY: run})
    (prediction,) = comfy.samplers.calc_cond_batch(args["model"], [conds], args["input"], args["sigma"], options)
    return prediction


class Guider(comfy.samplers.CFGGuider):
    """Samples with the three terms of the paper's guidance, in one batch if memory allows:

        D(no reference, negative) + cfg · (D(reference, positive) - D(reference, negative))
                                  + s_image · (D(reference, negative) - D(no reference, negative))

    in denoised latents D. `reference` stands for all that the model attends to; the injections' own image guidance is
    ignored. If the negative prompt attends to none, the positive prompt replaces it in the third term. Without a
    reference, or where s_image is 1, this is CFG.
    """

    image_guidance: float = 1.0
    guidance_curve: Curve = CONSTANT

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: Options | None = None, seed: int | None = None
    ) -> torch.Tensor:
        model_options = model_options or {}
        options = model_options["transformer_options"]
        run, active = run_state(options), active_injections(options)
        scale = image_guidance_at(self, run, timestep) if active else 1
        if scale == 1:
            return super().predict_noise(x, timestep, model_options, seed)
        conds = [self.conds["positive"], self.conds["negative"]]
        row = int(any(injection.rows != "conditioned" for injection in active))
        # The same new UUIDs at each step, because other nodes keep state by them.
        without = [{**cond, "uuid": uuid5(cond["uuid"], KEY)} for cond in conds[row]]
        attending = replace(run, without_reference=frozenset(cond["uuid"] for cond in without))

        def evaluate(conds: list[list], model_options: Options) -> list[torch.Tensor]:
            model_options = with_options(model_options, {RUN_KEY: attending})
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)

        def push(args: Options) -> torch.Tensor:
            with_reference, without_reference = evaluate([conds[row], without], args["model_options"])
            return args["denoised"] + (scale - 1) * (with_reference - without_reference)

        if _evaluates_in_its_own_way(model_options):
            # What the evaluations need is in the options that come out of that.
            with changed(model_options, {_LAST: [*model_options.get(_LAST, ()), push]}):
                return super().predict_noise(x, timestep, model_options, seed)
        *predictions, without_reference = evaluate([*conds, without], model_options)
        evaluated = {_BATCH_FUNCTION: lambda _: predictions, "disable_cfg1_optimization": True}
        with changed(model_options, evaluated):
            guided = super().predict_noise(x, timestep, model_options, seed)
        return guided + (scale - 1) * (predictions[row] - without_reference)


def image_guidance_at(guided: Injection | Guider, run: RunState, sigma: torch.Tensor) -> float:
    """s_image of an injection or a guider. If it follows a curve, the step waits for its sigma, because the value
    decides what is evaluated.
    """
    scale, curve = guided.image_guidance, guided.guidance_curve
    if scale == 1 or curve not in run.curves:
        return scale
    return 1 + (scale - 1) * float(run.curves[curve].at(sigma.max()))
