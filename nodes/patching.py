"""The one place that patches models: recording a reference on its way through the U-Net, and letting adapters read it.

Everything is put on a clone of the ModelPatcher, and ComfyUI takes it off the network again after each run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from uuid import UUID, uuid4, uuid5

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import numpy as np
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection, WrappersMP
from torch.utils.checkpoint import checkpoint

from ..dreamcache_core import (
    CONSTANT,
    STAGES,
    Adapter,
    AdapterLayer,
    Attention,
    AttentionMap,
    Curve,
    DreamCacheError,
    ReferenceCache,
    References,
    Source,
    Strengths,
    TransformerLayer,
    UNetStructure,
    at_progress,
    attention_maps,
    hash_weights,
    mean_map,
    read_structure,
    resize_mask,
    select_layers,
)

# Names everything of ours on a ModelPatcher: its injections, wrappers and additional models.
KEY = "dreamcache"
RUN_KEY = "dreamcache_run"
# Of a step: s_image of each injection, and the prompts for which nothing reads.
_SCALES_KEY = "dreamcache_image_guidance"
_WITHOUT_KEY = "dreamcache_without"
_RECORDING_KEY = "dreamcache_recording"
_WATCH_KEY = "dreamcache_watch"
TIMESTEPS = 1000
"""Of every U-Net, whatever schedule it is sampled with."""
# What a prompt has if it holds for a part of the picture only.
_PLACE = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength")
# How finely a curve over sampling is read.
_PROGRESS_POINTS = 257

Options = dict[str, Any]
# Which rows of the batch read the reference: those of every prompt, or of positive ones, or of negative ones.
Rows = Literal["both", "conditioned", "unconditioned"]


def structure_of(model: ModelPatcher) -> UNetStructure:
    """Structure of a MODEL's U-Net. Raises DreamCacheError for anything that DreamCache has no place in."""
    return read_structure(model.model.diffusion_model, type(model.model).__name__)


def weights_of(model: ModelPatcher) -> Source:
    """Which weights a MODEL's U-Net has: those of its file, and whether LoRAs or others are on them."""
    weights = model.get_key_patches("diffusion_model.")
    return Source(
        base_hash=hash_weights({name: versions[0][0] for name, versions in weights.items()}),
        patched=any(len(versions) > 1 for versions in weights.values()),
    )


# --- Encode Reference ------------------------------------------------------------------------------------------------


def encode_reference(
    model: ModelPatcher, latent: torch.Tensor, noise: torch.Tensor, conditioning: list, timestep: int, prompt: str
) -> ReferenceCache:
    """Run the U-Net once over references and keep what enters its transformers (paper, section 3.1).

    `latent`, `noise`: (references, 4, height, width), as the VAE gives them. `conditioning`: of `prompt`.
    The weights are the model's as it stands, LoRAs included; patches of attention and guidance are left out.
    """
    structure = structure_of(model)
    layers = select_layers(structure.layers, STAGES)
    recording = Recording()
    unpatched = _with_recorders_only(model, layers)
    unpatched.model_options = {"transformer_options": recording.options}

    guider = comfy.samplers.CFGGuider(unpatched)
    guider.inner_set_conds({"positive": conditioning})
    sigma = unpatched.get_model_object("model_sampling").sigmas[timestep].reshape(1)
    with suppress(Recorded):
        guider.sample(noise, latent, _SingleEvaluation(), sigma, disable_pbar=True)
    device = comfy.model_management.intermediate_device()
    return ReferenceCache(
        features={layer: tensor.to(device) for layer, tensor in recording.features.items()},
        base_model=structure.base_model,
        layers=layers,
        latent_size=(latent.shape[2], latent.shape[3]),
        timestep=timestep,
        prompt=prompt,
    )


class _SingleEvaluation(comfy.samplers.Sampler):
    """A sampler that evaluates the model once, at the latent noised to the first sigma, and returns the prediction."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sampling = model_wrap.inner_model.model_sampling
        return model_wrap(sampling.noise_scaling(sigmas, noise, latent_image), sigmas.expand(len(noise)), **extra_args)


class Recorded(Exception):  # noqa: N818  It is no error.
    """Ends an evaluation where the last layer is recorded, for nobody needs what comes after it."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What entered the layers of a model that has recorders: layer name → (batch, channels, height, width)."""

    features: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def options(self) -> Options:
        """The transformer_options of an evaluation that is to be recorded; it raises Recorded when that is done."""
        return {_RECORDING_KEY: self}


def _with_recorders_only(model: ModelPatcher, layers: tuple[TransformerLayer, ...]) -> ModelPatcher:
    """A clone of `model` that records what enters `layers` when an evaluation's options say so.

    Other patches of attention and guidance are left out; weights are as they are. So is the schedule, unless it is that
    of a distilled model (LCM), which has few timesteps, and not the first, at which references are read.
    """
    model = model.clone()
    if len(model.get_model_object("model_sampling").sigmas) < TIMESTEPS:
        model.object_patches.pop("model_sampling", None)
    model.model_options = {"transformer_options": {}}
    model.wrappers = {}
    model.set_additional_models(KEY, [])
    for layer in layers:
        name = f"diffusion_model.{layer.name}.forward"
        model.add_object_patch(name, partial(_record, model.get_model_object(name), layer.name, len(layers)))
    return model


def _record(
    forward: Callable, layer: str, layers: int, x: torch.Tensor, context: Any = None, transformer_options: Any = None
):
    recording = transformer_options.get(_RECORDING_KEY)
    if recording:
        recording.features[layer] = x.clone()
        if len(recording.features) == layers:
            raise Recorded
    return forward(x, context, transformer_options)


# --- Apply DreamCache ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Injection:
    """One Apply DreamCache: what is injected, how strongly, when, where, and into which rows of the batch.

    `adapter`: a ModelPatcher around a core Adapter. `start_percent`, `end_percent`: of sampling, 0…1, inclusive.
    `image_guidance`: s_image, how far to push towards this reference; at 1 no further than the adapter does by itself.
    `strengths`: what `strength` is multiplied with. `guidance_curve`: what `image_guidance - 1` is multiplied with.
    `region`: one mask, or one for each latent of the batch, (masks, height, width) of any size, 0…1, which the change
    that is injected is multiplied with; None: everywhere.
    `paired`: each latent of the batch reads the reference of its own number, as in training; not all of them.
    """

    adapter: ModelPatcher
    cache: References
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    image_guidance: float = 1.0
    rows: Rows = "both"
    strengths: Strengths = field(default_factory=Strengths)
    guidance_curve: Curve = CONSTANT
    region: torch.Tensor | None = None
    paired: bool = False

    def strength_at(self, layer: str) -> float:
        """0 where nothing is injected."""
        for own in self.adapter.model.layers:
            if own.name == layer:
                return self.strength * self.strengths.at_layer(own, self.cache.layers)
        return 0.0


@dataclass(frozen=True, eq=False)
class _BySigma:
    """The factors of a curve by sigma, on the device where it is, so that no step has to wait for its value.

    `factors`: (n,), of the end of sampling first. `borders`: (n - 1,), the sigmas from each to the next, rising.
    """

    factors: torch.Tensor
    borders: torch.Tensor

    def at(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.factors[torch.searchsorted(self.borders, sigma)]


@dataclass(frozen=True, eq=False)
class _Memory:
    """A reference cache as an adapter's layer reads it, as in AdapterLayer. `bias`: as in CombinedReferences."""

    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class _Run:
    """What lives for one sampling run.

    `conditioned`: the prompts that are not negative. `areas`: (height, width, top, left) in latent pixels of those that
    have one. `latent_size`: (height, width). `curves`: those that are followed, by sigma.
    `ranges`: the least and the largest sigma of those that aren't active in all of sampling.
    `memories`: the caches as adapters read them. `regions`: masks as layers need them.
    """

    conditioned: frozenset[UUID] = frozenset()
    areas: Mapping[UUID, tuple[int, int, int, int]] = field(default_factory=dict)
    latent_size: tuple[int, int] = (0, 0)
    curves: Mapping[Curve, _BySigma] = field(default_factory=dict)
    ranges: Mapping[Injection, tuple[float, float]] = field(default_factory=dict)
    memories: dict[tuple[Any, ...], _Memory] = field(default_factory=dict)
    regions: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)


def wrap_adapter(adapter: Adapter) -> ModelPatcher:
    """Give an adapter to ComfyUI's memory management, which loads, casts and offloads it as it does any model."""
    # The class that ComfyUI uses for its own models; before dynamic VRAM came there was only one.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return patcher(
        adapter,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def wrap_for_drawing(adapter: Adapter) -> ModelPatcher:
    """The same of an adapter folded for drawing, which is cast to what the model computes in."""
    patcher = wrap_adapter(adapter.folded(comfy.ops.manual_cast))
    patcher.set_attachments(KEY, adapter)
    return patcher


def unfolded(adapter: ModelPatcher) -> Adapter:
    """The adapter that `wrap_for_drawing` was given, which can be saved and trained on."""
    return adapter.get_attachment(KEY)


def inject(model: ModelPatcher, injection: Injection) -> ModelPatcher:
    """A clone of `model` whose adapted layers read the reference cache.

    Raises DreamCacheError if model, adapter and cache do not belong to the same base model.
    """
    adapter: Adapter = injection.adapter.model
    structure = structure_of(model)
    adapter.check_fits(structure)
    injection.cache.check_fits(structure, adapter.layers)

    model = model.clone()
    if not any(injection.strength_at(layer.name) for layer in adapter.layers):
        return model
    options = model.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), injection)
    _let_blocks_read(model, adapter.layers)
    if not model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _begin_run)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _select_active)
    adapters = model.get_additional_models_with_key(KEY)
    if not any(injection.adapter.is_clone(other) for other in adapters):
        model.set_additional_models(KEY, [*adapters, injection.adapter])
    if injection.image_guidance != 1:
        model.set_model_sampler_post_cfg_function(partial(_guide_by_image, injection))
    return model


def _let_blocks_read(model: ModelPatcher, layers: tuple[TransformerLayer, ...]) -> None:
    for layer in layers:
        name = f"diffusion_model.{layer.name}.transformer_blocks.0.forward"
        forward = model.get_model_object(name)
        if not isinstance(forward, _InjectedForward):
            model.add_object_patch(name, _InjectedForward(forward, layer.name))


def _begin_run(
    executor: Callable,
    guider: Any,
    sigmas: torch.Tensor,
    extra_args: Options,
    callback: Callable,
    noise: torch.Tensor,
    *args,
    **kwargs,
):
    model_options = extra_args["model_options"]
    injections: tuple[Injection, ...] = model_options["transformer_options"].get(KEY, ())
    for injection in injections:
        _check_batch(injection, len(noise))
    conditioned, areas = set(), {}
    for name, conds in guider.conds.items():
        for cond in conds:
            if "negative" in name:
                # Its own: where a positive prompt has an area, ComfyUI copied it here, UUID included.
                cond["uuid"] = uuid4()
            else:
                conditioned.add(cond["uuid"])
            if "area" in cond:
                areas[cond["uuid"]] = tuple(cond["area"])
    sampling = guider.inner_model.model_sampling
    curves = {curve for one in injections for curve in (one.strengths.curve, one.guidance_curve)}
    if isinstance(guider, Guider):
        curves.add(guider.guidance_curve)
    run = _Run(
        conditioned=frozenset(conditioned),
        areas=areas,
        latent_size=(noise.shape[-2], noise.shape[-1]),
        curves={curve: _by_sigma(curve, sampling, noise.device) for curve in curves - {CONSTANT}},
        ranges={
            injection: tuple(map(sampling.percent_to_sigma, (injection.end_percent, injection.start_percent)))
            for injection in injections
            if (injection.start_percent, injection.end_percent) != (0, 1)
        },
    )
    model_options = _with_options(model_options, {RUN_KEY: run})
    extra_args = {**extra_args, "model_options": model_options}
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _check_batch(injection: Injection, latents: int) -> None:
    region, references = injection.region, injection.cache.references
    if region is not None and len(region) not in (1, latents):
        raise DreamCacheError(
            f"The region of Apply DreamCache holds {len(region)} masks and the batch {latents} latents: connect one "
            "mask for all, or one for each latent."
        )
    if injection.paired and references != latents:
        raise DreamCacheError(
            f"There are {references} references, one for each latent, and {latents} latents in the batch: make as many "
            "of each, or set mode to concatenate in DreamCache Combine References."
        )


def _by_sigma(curve: Curve, sampling: Any, device: torch.device) -> _BySigma:
    progress = np.linspace(1, 0, _PROGRESS_POINTS)
    # ComfyUI's sigmas of the first and the last percent lie outside of all sampling.
    sigmas = torch.tensor([sampling.percent_to_sigma(float(done)) for done in progress.clip(1e-6, 1 - 1e-6)])
    factors = torch.tensor(at_progress(curve, progress), dtype=torch.float32)
    return _BySigma(factors.to(device), ((sigmas[1:] + sigmas[:-1]) / 2).to(device))


def _select_active(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: Options, *args):
    guider, options = executor.class_obj, model_options["transformer_options"]
    run: _Run = options[RUN_KEY]
    active = options.get(KEY, ())
    if run.ranges:
        # The host waits for the device here, once a step, as ComfyUI does for a prompt that has a range.
        sigma = float(timestep.max())
        over = {injection for injection, (least, largest) in run.ranges.items() if not least <= sigma <= largest}
        active = tuple(injection for injection in active if injection not in over)
    scales = {}
    if not isinstance(guider, Guider):  # Which has a scale of its own, for all of them.
        scales = {injection: _scale_at(injection, run, timestep) for injection in active}
    model_options = _with_options(model_options, {KEY: active, _SCALES_KEY: scales})
    if any(scale != 1 and injection.rows != "conditioned" for injection, scale in scales.items()):
        # The third evaluation is of the negative prompt, which ComfyUI leaves out at a CFG of 1.
        model_options["disable_cfg1_optimization"] = True
    with _no_compiling():
        return executor(x, timestep, model_options, *args)


def _scale_at(pushing: Injection | Guider, run: _Run, sigma: torch.Tensor) -> float:
    """s_image. Where it follows a curve the step waits for its value, which decides what is evaluated."""
    scale, curve = pushing.image_guidance, pushing.guidance_curve
    if scale == 1 or curve not in run.curves:
        return scale
    return 1 + (scale - 1) * float(run.curves[curve].at(sigma.max()))


def _no_compiling() -> AbstractContextManager:
    """Leaves torch.compile out: ComfyUI lets it keep graphs whatever transformer_options say, ours included, so that
    it would draw with the references of an earlier run, or none.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return set_stance("force_eager") if set_stance else nullcontext()


def _guide_by_image(injection: Injection, args: Options) -> torch.Tensor:
    """The third term of guidance (paper, section 3.4), of which a scale of 1 is already in the other two:

    (s_image - 1) · (D(reference, prompt) - D(no reference, prompt))

    in denoised latents D, for the negative prompt; where that has no reference, for the positive.
    """
    model_options = args["model_options"]
    options = model_options["transformer_options"]
    scale = options.get(_SCALES_KEY, {}).get(injection, 1)
    if scale == 1:
        return args["denoised"]
    row = "uncond" if args["uncond"] and injection.rows != "conditioned" else "cond"
    others = tuple(other for other in options[KEY] if other is not injection)
    (without,) = comfy.samplers.calc_cond_batch(
        args["model"], [args[row]], args["input"], args["sigma"], _with_options(model_options, {KEY: others})
    )
    return args["denoised"] + (scale - 1) * (args[f"{row}_denoised"] - without)


class Guider(comfy.samplers.CFGGuider):
    """Samples the three terms of the paper's guidance (section 3.4), in one batch if memory allows:

    D(no reference, negative) + cfg · (D(reference, positive) - D(reference, negative))
                              + s_image · (D(reference, negative) - D(no reference, negative))

    in denoised latents D. Reference: all that the model reads, whose own image guidance is left out. Where the negative
    prompt reads none, the positive stands in the third term. Without a reference, and where s_image is 1, it is CFG.
    """

    image_guidance: float = 1.0
    guidance_curve: Curve = CONSTANT

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: Options | None = None, seed: int | None = None
    ) -> torch.Tensor:
        model_options = model_options or {}
        options = model_options["transformer_options"]
        active = options.get(KEY, ())
        scale = _scale_at(self, options[RUN_KEY], timestep) if active else 1
        if scale == 1:
            return super().predict_noise(x, timestep, model_options, seed)
        conds = [self.conds["positive"], self.conds["negative"]]
        row = int(any(injection.rows != "conditioned" for injection in active))
        # Of their own at each step alike, for other nodes keep things by them.
        without = [{**cond, "uuid": uuid5(cond["uuid"], KEY)} for cond in conds[row]]
        reading_none = _with_options(model_options, {_WITHOUT_KEY: frozenset(cond["uuid"] for cond in without)})
        *predictions, none = comfy.samplers.calc_cond_batch(
            self.inner_model, [*conds, without], x, timestep, reading_none
        )
        evaluated = {"sampler_calc_cond_batch_function": lambda _: predictions, "disable_cfg1_optimization": True}
        guided = super().predict_noise(x, timestep, {**model_options, **evaluated}, seed)
        return guided + (scale - 1) * (predictions[row] - none)


@dataclass(frozen=True, eq=False)
class _InjectedForward:
    """The forward of an adapted transformer block: the block's own, if there is nothing to inject."""

    forward: Callable
    layer: str

    def __call__(self, x: torch.Tensor, context: Any = None, transformer_options: Options | None = None):
        options = transformer_options or {}
        injections = [injection for injection in options.get(KEY, ()) if injection.strength_at(self.layer)]
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
    """An attn1_output_patch. Several injections add up: each changes what it would have changed alone.

    `x`: the block's token input; `self_attention`: of it; both (rows · batch, tokens, channels).
    """
    attention = partial(optimized_attention, attn_precision=options.get("attn_precision"), transformer_options=options)
    run = options.get(RUN_KEY) or _Run()
    watch: Watch | None = options.get(_WATCH_KEY)
    result = self_attention.clone()
    for injection in injections:
        adapter: AdapterLayer = injection.adapter.model[layer]
        name = (injection, layer, x.device, x.dtype)
        if name not in run.memories:
            run.memories[name] = _read(adapter, injection, layer, x)
        memory = run.memories[name]
        read = attention if memory.bias is None else partial(attention, mask=memory.bias)
        for rows in _rows_that_read(injection, len(x), options, run):
            seen = watch.over(read, injection, layer, memory.bias, rows, x, options, run) if watch else read
            change = adapter(x[rows], self_attention[rows], memory.key, memory.value, seen)
            if injection.region is not None:
                change *= _region_of(injection.region, x, options, run)[rows]
            if injection.strengths.curve in run.curves:
                change *= run.curves[injection.strengths.curve].at(options["sigmas"][:1]).to(x)
            result[rows].add_(change, alpha=injection.strength_at(layer))
    return result


def _rows_that_read(injection: Injection, rows: int, options: Options, run: _Run) -> list[slice]:
    """Which of the rows that are evaluated together read the reference: all latents of a prompt in a row, and prompts
    that stand side by side together.
    """
    without = options.get(_WITHOUT_KEY, ())
    reading = [uuid not in without and _reads(injection, uuid, run) for uuid in options.get("uuids", ())]
    if all(reading):
        return [slice(rows)]
    batch = rows // len(reading)
    found: list[slice] = []
    for start in (number * batch for number, reads in enumerate(reading) if reads):
        first = found.pop().start if found and found[-1].stop == start else start
        found.append(slice(first, start + batch))
    return found


def _reads(injection: Injection, uuid: UUID, run: _Run) -> bool:
    """Whether the rows of a prompt read the reference."""
    return injection.rows == "both" or (uuid in run.conditioned) == (injection.rows == "conditioned")


def _region_of(mask: torch.Tensor, x: torch.Tensor, options: Options, run: _Run) -> torch.Tensor:
    """A region as a layer needs it: (rows · batch, tokens, 1). A prompt that has an area sees that much of it."""
    size = tuple(options["activations_shape"][-2:])
    areas = tuple(run.areas.get(uuid) for uuid in options["uuids"])
    memory = (id(mask), areas, size, len(x), x.device, x.dtype)
    if memory not in run.regions:
        mask = mask.to(x.device)
        rows = []
        for area in areas:
            seen = mask
            if area:
                height, width, top, left = area
                seen = resize_mask(mask, *run.latent_size)[:, top : top + height, left : left + width]
            rows.append(resize_mask(seen, *size).expand(len(x) // len(areas), -1, -1))
        run.regions[memory] = torch.cat(rows).flatten(1).unsqueeze(-1).to(x)
    return run.regions[memory]


def _read(adapter: AdapterLayer, injection: Injection, layer: str, x: torch.Tensor) -> _Memory:
    key, value = adapter.keys_values(injection.cache.tokens(layer, injection.paired).to(x))
    bias = injection.cache.bias(layer, injection.paired)
    return _Memory(key, value, None if bias is None else bias.to(x))


def _with_options(model_options: Options, changes: Options) -> Options:
    """A copy of model_options with other transformer_options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **changes}}


# --- Preview Attention -----------------------------------------------------------------------------------------------


def injections_of(model: ModelPatcher) -> tuple[Injection, ...]:
    """What Apply DreamCache has put on a MODEL, the first of them first."""
    return model.model_options["transformer_options"].get(KEY, ())


def watch_attention(
    model: ModelPatcher,
    latent: torch.Tensor,
    noise: torch.Tensor,
    conditioning: list,
    progress: float,
    region: torch.Tensor | None = None,
) -> Watch:
    """Run a model that reads references once over finished pictures, noised as at a point of sampling, and see where it
    looks.

    `latent`, `noise`: (batch, 4, height, width). `conditioning`: the positive prompt, of which areas and masks are left
    out. `progress`: 0…1. `region`: of the pictures, as in Injection; what is asked about.
    """
    watch = Watch(region)
    watched = model.clone()
    # Guidance has no part in where the model looks, and would let it look again with something left out.
    options = {name: value for name, value in model.model_options.items() if not name.startswith("sampler_")}
    watched.model_options = _with_options(options, watch.options)
    everywhere = [
        [prompt, {name: value for name, value in details.items() if name not in _PLACE}]
        for prompt, details in conditioning
    ]
    guider = comfy.samplers.CFGGuider(watched)
    guider.inner_set_conds({"positive": everywhere})
    # ComfyUI's sigmas of the first and the last percent lie outside of all sampling.
    sampling = watched.get_model_object("model_sampling")
    sigma = torch.tensor([sampling.percent_to_sigma(min(max(progress, 1e-6), 1 - 1e-6))])
    guider.sample(noise, latent, _SingleEvaluation(), sigma, disable_pbar=True)
    return watch


@dataclass(frozen=True, eq=False)
class Watch:
    """Where layers look in references during an evaluation.

    `region`: as in Injection; what is asked about. `seen`: by injection, layer and number of the latent, for each
    prompt a map of each reference.
    """

    region: torch.Tensor | None
    seen: dict[tuple[Injection, str, int], list[list[AttentionMap]]] = field(default_factory=dict)

    @property
    def options(self) -> Options:
        """The transformer_options of an evaluation that is to be watched."""
        return {_WATCH_KEY: self}

    def maps(self, injection: Injection, latent: int) -> list[dict[str, AttentionMap]]:
        """Of each reference that a latent reads: maps by layer, the mean of all prompts. Empty if nothing is read."""
        maps: list[dict[str, AttentionMap]] = []
        for (of, layer, number), prompts in self.seen.items():
            if (of, number) == (injection, latent):
                means = [mean_map(of_reference) for of_reference in zip(*prompts, strict=True)]
                maps = maps or [{} for _ in means]
                for reference, mean in zip(maps, means, strict=True):
                    reference[layer] = mean
        return maps

    def over(
        self,
        attention: Attention,
        injection: Injection,
        layer: str,
        bias: torch.Tensor | None,
        rows: slice,
        x: torch.Tensor,
        options: Options,
        run: _Run,
    ) -> Attention:
        """The same attention, watched. Arguments as in `_add_references`; `bias`: as in _Memory."""

        def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
            region = x.new_ones(len(x), x.shape[1], 1)
            for mask in (self.region, injection.region):
                if mask is not None:
                    region = region * _region_of(mask, x, options, run)
            size = tuple(options["activations_shape"][-2:])
            kept = [each for cache in injection.cache.caches for each in cache.kept(layer)]
            latents = len(x) // len(options["uuids"])
            # Of each reference, the queries of all rows that read it stand in a row; see AdapterLayer.
            queries = query.unflatten(1, (-1, x.shape[1])).transpose(0, 1).flatten(0, 1)
            for row, (of_row, weights) in enumerate(zip(queries, region[rows], strict=True)):
                maps = attention_maps(
                    of_row,
                    key[row % len(key)],
                    heads,
                    weights.reshape(size),
                    [kept[row % len(kept)]] if injection.paired else kept,
                    None if bias is None else bias[row % len(bias), 0],
                )
                self.seen.setdefault((injection, layer, row % latents), []).append(maps)
            return attention(query, key, value, heads)

        return watched


# --- Training --------------------------------------------------------------------------------------------------------


def make_trainable(model: ModelPatcher, adapter: Adapter, checkpointing: bool = False) -> ModelPatcher:
    """A clone of `model` that records, or reads a reference, as its transformer_options say at each evaluation.

    `Recording.options` and `reading` give these. `checkpointing` computes activations anew where gradients need them,
    which takes less memory and more time. Other patches of attention and guidance are left out, weights are as they
    are. Raises DreamCacheError if the adapter isn't one for this model.
    """
    adapter.check_fits(structure_of(model))
    # Dynamic VRAM lends weights memory for a moment only, and the backward pass needs them later.
    trainable = _with_recorders_only(model.clone(disable_dynamic=True), adapter.layers)
    _let_blocks_read(trainable, adapter.layers)
    weights = _DifferentiableWeights()
    trainable.set_injections(KEY, [PatcherInjection(weights.put_on, weights.take_off)])
    if checkpointing:
        for name, module in model.model.named_modules():
            # Nothing before the middle block has a gradient.
            trained = name.startswith(("diffusion_model.middle_block.", "diffusion_model.output_blocks."))
            if trained and isinstance(module, (ResBlock, SpatialTransformer)):
                forward = trainable.get_model_object(f"{name}.forward")
                trainable.add_object_patch(f"{name}.forward", partial(checkpoint, forward, use_reentrant=False))
    return trainable


class _DifferentiableWeights:
    """Puts others on the same memory in place of weights that were loaded in inference mode, as ComfyUI's nodes load
    them: those can't be kept for a backward pass.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []

    @torch.inference_mode(False)
    def put_on(self, model: ModelPatcher) -> None:
        for module in model.model.diffusion_model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.is_inference():
                    shared = torch.empty(0, dtype=weight.dtype, device=weight.device)
                    shared.set_(weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride())
                    self._originals.append((module, name, weight))
                    setattr(module, name, torch.nn.Parameter(shared, requires_grad=False))

    def take_off(self, _: ModelPatcher) -> None:
        for original in self._originals:
            setattr(*original)
        self._originals.clear()


def reading(injection: Injection) -> Options:
    """The transformer_options with which a trainable model reads the reference of `injection`."""
    return {KEY: (injection,)}
