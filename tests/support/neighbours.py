"""Stand-ins for other people's nodes: each does one thing that public packs do. A model in, a patched clone out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP


def keeps_differences_by_uuid(model: ModelPatcher) -> ModelPatcher:
    """A cache of steps: every other step gets the change that the U-Net made in the step before, by prompt."""
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


def swaps_forward(model: ModelPatcher, name: str) -> Callable[[], None]:
    """Replace a block's forward, as some packs do before a run. Returns a function that restores what was found."""
    block = model.model.diffusion_model.get_submodule(name)
    found = block.forward
    block.forward = lambda *args, **kwargs: found(*args, **kwargs)

    def restore() -> None:
        block.forward = found

    return restore


class Tiles:
    """A node that cuts latents into tiles of half the width, and averages what is drawn where they overlap, by half.

    `prompt_major`: stack all tiles of a prompt, then those of the next; otherwise all prompts of a tile, then those of
    the next. `overlap`: whether they do. `shift`: how far latents are rolled to the right first. `noise`: how much of
    it is added to the tiles.
    """

    def __init__(self, prompt_major: bool = False, overlap: bool = True, shift: int = 0, noise: float = 0.0) -> None:
        self.prompt_major, self.overlap, self.shift, self.noise = prompt_major, overlap, shift, noise

    def __call__(self, model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_unet_function_wrapper(self._evaluate)
        return model

    def _evaluate(self, apply_model: Callable, args: dict[str, Any]) -> torch.Tensor:
        x, prompts = args["input"].roll(self.shift, dims=-1), len(args["cond_or_uncond"])
        width = x.shape[-1] // 2
        starts = range(0, width + 1, width // 2 if self.overlap else width)

        def stacked(tiles: list[torch.Tensor]) -> torch.Tensor:
            every = torch.stack(tiles).unflatten(1, (prompts, -1))  # (tiles, prompts, latents, …)
            return (every.transpose(0, 1) if self.prompt_major else every).flatten(0, 2)

        parts = stacked([x[..., start : start + width] for start in starts])
        context = stacked([args["c"]["c_crossattn"]] * len(starts))
        sigmas = stacked([args["timestep"]] * len(starts))
        drawn = apply_model(
            parts + self.noise * torch.randn_like(parts), sigmas, **args["c"] | {"c_crossattn": context}
        )
        shape = (prompts, len(starts), -1) if self.prompt_major else (len(starts), prompts, -1)
        tiles = drawn.unflatten(0, shape)
        tiles = (tiles.transpose(0, 1) if self.prompt_major else tiles).flatten(1, 2)
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for start, tile in zip(starts, tiles, strict=True):
            total[..., start : start + width] += tile
            count[..., start : start + width] += 1
        return (total / count).roll(-self.shift, dims=-1)


def remembers_options(model: ModelPatcher, predictions: list[tuple[torch.Tensor, torch.Tensor]]) -> ModelPatcher:
    """A node that copies a model's options when it patches, and evaluates with them in each step. Keeps in
    `predictions` what comes of it, beside what comes of the step's own options.
    """
    model = model.clone()
    copied = copy.deepcopy(model.model_options)

    def evaluate(args: dict[str, Any]) -> torch.Tensor:
        def predict(options: dict[str, Any]) -> torch.Tensor:
            both = [args["cond"], args["uncond"]]
            return torch.cat(comfy.samplers.calc_cond_batch(args["model"], both, args["input"], args["sigma"], options))

        predictions.append((predict(copied), predict(args["model_options"])))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(evaluate)
    return model


def counts_in_options(model: ModelPatcher, calls: list[int]) -> ModelPatcher:
    """A node that keeps its state in the options of a run."""
    model = model.clone()

    def count(args: dict[str, Any]) -> torch.Tensor:
        options = args["model_options"]
        options["calls"] = options.get("calls", 0) + 1
        calls.append(options["calls"])
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(count)
    return model


def swaps_prompts(model: ModelPatcher) -> ModelPatcher:
    """A node that evaluates the prompts for CFG in its own way: halfway between both."""
    model = model.clone()

    def evaluate(args: dict[str, Any]) -> list[torch.Tensor]:
        names = ("model", "conds", "input", "sigma", "model_options")
        positive, negative = comfy.samplers.calc_cond_batch(*(args[name] for name in names))
        return [positive, (positive + negative) / 2]

    model.set_model_sampler_calc_cond_batch_function(evaluate)
    return model


def replaces_sampling_function(model: ModelPatcher) -> ModelPatcher:
    """A node that puts its own function in the place of ComfyUI's for a run, and whose evaluations need what only that
    function gives them. In the second half of sampling it leaves the negative prompt out.
    """
    model = model.clone()

    def predict(
        model: Any,
        x: torch.Tensor,
        sigma: torch.Tensor,
        uncond: Any,
        cond: Any,
        scale: float,
        model_options: Any,
        seed: Any,
    ) -> torch.Tensor:
        options = {**model_options, "transformer_options": {**model_options["transformer_options"], "given": True}}
        skips = bool(sigma.max() < 1)
        predictions = comfy.samplers.calc_cond_batch(model, [cond, None if skips else uncond], x, sigma, options)
        return comfy.samplers.cfg_function(
            model, *predictions, 1.0 if skips else scale, x, sigma, options, cond, uncond
        )

    def run(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        found, comfy.samplers.sampling_function = comfy.samplers.sampling_function, predict
        try:
            return executor(*args, **kwargs)
        finally:
            comfy.samplers.sampling_function = found

    def evaluate(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert (kwargs.get("transformer_options") or args[-1])["given"]
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", run)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", evaluate)
    return model
