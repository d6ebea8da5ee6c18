"""Apply DreamCache in one graph with ComfyUI's own nodes: both act, in either order, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graph import Link, Scene, difference, lora, output
from support.miniature import models

# A node after a model: the scene that it's added to and the model before it → the model after it.
ModelNode = Callable[[Scene, Link], Link]

# Far more than rounding, and less than what any of the nodes here does.
NOTICEABLE = 0.01


def perp_neg(scene: Scene, model: Link) -> Link:
    return scene.add("PerpNeg", model=model, empty_conditioning=empty_prompt(scene), neg_scale=1.0)


def empty_prompt(scene: Scene) -> Link:
    return scene.add("CLIPTextEncode", clip=scene.clip, text="")


def node(class_type: str, **inputs: Any) -> ModelNode:
    return lambda scene, model: scene.add(class_type, model=model, **inputs)


def apply(**settings: Any) -> ModelNode:
    return lambda scene, model: scene.apply(model, **settings)


def own(**settings: Any) -> ModelNode:
    """Apply DreamCache with the model's own attention."""
    return lambda scene, model: scene.apply(model, adapter=scene.own_attention(), **settings)


trained_and_own = pytest.mark.parametrize("attending", [apply, own], ids=["trained", "own attention"])


# HyperTile and ToMe act on the U-Net's largest layers only, and on 128×192 pixels for HyperTile's tiles must be small.
MODEL_NODES: dict[str, ModelNode] = {
    "LoRA": lora,
    "FreeU": node("FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "HyperTile": node("HyperTile", tile_size=32, swap_size=3, max_depth=0, scale_depth=False),
    "ToMe": node("TomePatchModel", ratio=0.3),
    "PAG": node("PerturbedAttentionGuidance", scale=3.0),
    "SAG": node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "PerpNeg": perp_neg,
    "RescaleCFG": node("RescaleCFG", multiplier=0.7),
    "NAG": node("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    "deep shrink": node(
        "PatchModelAddDownscale",
        block_number=3,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.35,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "v-prediction": node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
}


def picture(server, *nodes: ModelNode, structure: str = "sd15", **sampler: Any) -> torch.Tensor:
    """Latents of a model after these nodes, in two steps."""
    scene = Scene(server, structure)
    model = scene.model
    for add in nodes:
        model = add(scene, model)
    return scene.sample(model, **{"steps": 2, **sampler})


@pytest.fixture(scope="module")
def plain(server) -> torch.Tensor:
    return picture(server)


@pytest.fixture(scope="module")
def with_reference(server) -> torch.Tensor:
    return picture(server, apply())


@trained_and_own
@pytest.mark.parametrize("other", MODEL_NODES.values(), ids=MODEL_NODES.keys())
def test_nodes_that_change_the_model(server, plain, attending: Callable[..., ModelNode], other: ModelNode) -> None:
    alone, both = picture(server, other), picture(server, attending(), other)
    assert both.shape == (1, 4, 16, 24)
    assert both.isfinite().all()
    assert difference(alone, plain) > NOTICEABLE
    assert difference(both, alone) > NOTICEABLE
    assert difference(both, picture(server, attending())) > NOTICEABLE
    assert torch.equal(picture(server, other, attending()), both)
    assert torch.equal(picture(server, other, attending(strength=0.0, image_guidance=2.0)), alone)
    guided = picture(server, other, attending(image_guidance=2.0))
    assert guided.isfinite().all()
    assert difference(guided, both) > NOTICEABLE
    assert torch.equal(picture(server), plain)


def apply_in_a_region(scene: Scene, model: Link) -> Link:
    factors = {"bottleneck": 0.5, "coarse": 1.0, "medium": 1.0, "fine": 0.8}
    strengths = scene.add("DreamCacheStrengths", **factors, over_sampling="list", values="1, 0.5")
    return scene.apply(model, region=half_mask(scene), strengths=strengths, rows="conditioned")


@pytest.mark.parametrize("other", MODEL_NODES.values(), ids=MODEL_NODES.keys())
def test_nodes_that_change_the_model_with_a_region_and_strengths(server, with_reference, other: ModelNode) -> None:
    alone, both = picture(server, other), picture(server, apply_in_a_region, other)
    assert both.isfinite().all()
    assert difference(both, alone) > NOTICEABLE
    assert difference(both, with_reference) > NOTICEABLE
    assert torch.equal(picture(server, other, apply_in_a_region), both)


def half_mask(scene: Scene) -> Link:
    """White on the left half of 128×192 pixels."""
    black = scene.add("SolidMask", value=0.0, width=192, height=128)
    white = scene.add("SolidMask", value=1.0, width=96, height=128)
    return scene.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")


def picture_to_inpaint(scene: Scene) -> Link:
    return scene.add("ImageScale", image=scene.image, upscale_method="area", width=192, height=128, crop="disabled")


def controlnet(scene: Scene) -> dict[str, Link]:
    net = scene.add("MiniatureControlNet", structure="sd15", seed=models.SEED)
    inputs = {"positive": scene.positive, "negative": scene.negative, "control_net": net, "image": scene.image}
    both = scene.add("ControlNetApplyAdvanced", **inputs, strength=1.0, start_percent=0.0, end_percent=1.0)
    return {"positive": both, "negative": output(both, 1)}


def with_an_area(scene: Scene) -> dict[str, Link]:
    area = {"width": 96, "height": 128, "x": 0, "y": 0, "strength": 1.0}
    left = scene.add("ConditioningSetArea", conditioning=empty_prompt(scene), **area)
    return {"positive": scene.add("ConditioningCombine", conditioning_1=left, conditioning_2=scene.positive)}


def with_a_mask(scene: Scene) -> dict[str, Link]:
    mask = {"mask": half_mask(scene), "strength": 1.0, "set_cond_area": "mask bounds"}
    left = scene.add("ConditioningSetMask", conditioning=empty_prompt(scene), **mask)
    return {"positive": scene.add("ConditioningCombine", conditioning_1=left, conditioning_2=scene.positive)}


def with_a_hook(scene: Scene) -> dict[str, Link]:
    """A LoRA for the positive prompt alone."""
    name = scene.prompt[lora(scene, scene.model)[0]]["inputs"]["lora_name"]
    hooks = scene.add("CreateHookLoraModelOnly", lora_name=name, strength_model=1.0)
    prompt = {"cond_NEW": scene.positive, "strength": 1.0, "set_cond_area": "default"}
    return {"positive": scene.add("ConditioningSetProperties", **prompt, hooks=hooks)}


def inpainting(scene: Scene) -> dict[str, Link]:
    latent = scene.add("VAEEncode", pixels=picture_to_inpaint(scene), vae=scene.vae)
    return {"latent_image": scene.add("SetLatentNoiseMask", samples=latent, mask=half_mask(scene))}


def inpainting_an_emptied_area(scene: Scene) -> dict[str, Link]:
    inputs = {"pixels": picture_to_inpaint(scene), "vae": scene.vae, "mask": half_mask(scene)}
    return {"latent_image": scene.add("VAEEncodeForInpaint", **inputs, grow_mask_by=6)}


def inpainting_with_a_model_for_it(scene: Scene) -> dict[str, Link]:
    prompts = {"positive": scene.positive, "negative": scene.negative, "vae": scene.vae}
    picture = {"pixels": picture_to_inpaint(scene), "mask": half_mask(scene), "noise_mask": True}
    first = scene.add("InpaintModelConditioning", **prompts, **picture)
    return {"positive": first, "negative": output(first, 1), "latent_image": output(first, 2)}


@trained_and_own
@pytest.mark.parametrize(
    ("structure", "change"),
    [
        ("sd15", controlnet),
        ("sd15", with_an_area),
        ("sd15", with_a_mask),
        ("sd15", with_a_hook),
        ("sd15", inpainting),
        ("sd15", inpainting_an_emptied_area),
        ("sd15_inpaint", inpainting_with_a_model_for_it),
    ],
)
def test_nodes_that_change_the_prompts_or_the_latents(
    server, attending: Callable[..., ModelNode], structure: str, change: Callable
) -> None:
    def changed(**settings: Any) -> torch.Tensor:
        scene = Scene(server, structure)
        return scene.sample(attending(**settings)(scene, scene.model), steps=2, **change(scene))

    scene = Scene(server, structure)
    alone, both = scene.sample(scene.model, steps=2, **change(scene)), changed()
    assert both.shape == (1, 4, 16, 24)
    assert both.isfinite().all()
    assert difference(both, alone) > NOTICEABLE
    assert difference(both, picture(server, attending(), structure=structure)) > NOTICEABLE
    assert torch.equal(changed(strength=0.0), alone)
    guided = changed(image_guidance=2.0)
    assert guided.isfinite().all()
    assert difference(guided, both) > NOTICEABLE


def test_inpainting_keeps_what_is_not_masked(server) -> None:
    scene = Scene(server)
    latent = scene.latents(scene.add("VAEEncode", pixels=picture_to_inpaint(scene), vae=scene.vae))
    scene = Scene(server)
    both = scene.sample(scene.apply(scene.model, image_guidance=2.0), steps=2, **inpainting(scene))
    assert difference(both[..., 12:], latent[..., 12:]) < 1e-5
    assert difference(both[..., :12], latent[..., :12]) > NOTICEABLE


@pytest.mark.parametrize("change", [with_an_area, with_a_mask])
def test_conditioned_rows_are_told_apart_in_areas_too(server, change: Callable) -> None:
    """ComfyUI gives the negative prompt the areas of the positive."""

    def changed(cfg: float, **settings: Any) -> torch.Tensor:
        scene = Scene(server)
        return scene.sample(scene.apply(scene.model, **settings), steps=2, cfg=cfg, **change(scene))

    # At a CFG of 1 only the positive prompt counts, and at 0 only the negative.
    assert torch.equal(changed(1.0, rows="conditioned"), changed(1.0))
    assert torch.equal(changed(0.0, rows="conditioned"), changed(0.0, strength=0.0))


def test_conditioned_rows_leave_the_empty_prompt_of_perp_neg_as_it_was(server) -> None:
    def changed(**settings: Any) -> torch.Tensor:
        return picture(server, perp_neg, apply(**settings), cfg=0.0)

    assert torch.equal(changed(rows="conditioned"), changed(strength=0.0))
    assert difference(changed(rows="both"), changed(strength=0.0)) > NOTICEABLE


def test_a_lora_before_encoding_is_in_the_cache_too(server) -> None:
    def drawn(encode_with_lora: bool, reference: bool = True) -> torch.Tensor:
        scene = Scene(server)
        with_lora = lora(scene, scene.model)
        cache = scene.encode(model=with_lora if encode_with_lora else scene.model)
        return scene.sample(scene.apply(with_lora, reference_cache=cache) if reference else with_lora, steps=2)

    before, after = drawn(encode_with_lora=True), drawn(encode_with_lora=False)
    assert difference(before, after) > NOTICEABLE
    assert difference(before, drawn(encode_with_lora=True, reference=False)) > NOTICEABLE


def test_a_lora_for_model_and_clip(server) -> None:
    def drawn(reference: bool) -> torch.Tensor:
        scene = Scene(server)
        name = scene.prompt[lora(scene, scene.model)[0]]["inputs"]["lora_name"]
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        scene.model = scene.add("LoraLoader", model=scene.model, clip=scene.clip, lora_name=name, **strengths)
        scene.clip = output(scene.model, 1)
        model = scene.apply(scene.model, reference_cache=scene.encode()) if reference else scene.model
        return scene.sample(model, steps=2)

    assert difference(drawn(reference=True), drawn(reference=False)) > NOTICEABLE


def test_trained_adapters_and_own_attention_in_one_graph(server) -> None:
    both = picture(server, apply(strength=0.6), own(image_guidance=2.0))
    assert torch.equal(picture(server, apply(strength=0.6), own(image_guidance=2.0)), both)
    other_order = picture(server, own(image_guidance=2.0), apply(strength=0.6))
    assert difference(other_order, both) < 1e-5
    for one in (apply(strength=0.6), own(image_guidance=2.0)):
        assert difference(both, picture(server, one)) > NOTICEABLE


def test_perturbed_attention_guidance_still_guides_beside_own_attention(server) -> None:
    """PAG replaces the self-attention that own attention extends."""
    pag = MODEL_NODES["PAG"]
    effect = difference(picture(server, own(), pag), picture(server, own()))
    assert effect > 0.5 * difference(picture(server, pag), picture(server))


def test_two_applies_with_another_node_between(server) -> None:
    free_u = MODEL_NODES["FreeU"]
    both = picture(server, apply(strength=0.6), free_u, apply(strength=0.4, image_guidance=1.5))
    assert torch.equal(picture(server, free_u, apply(strength=0.6), apply(strength=0.4, image_guidance=1.5)), both)
    assert difference(both, picture(server, apply(strength=0.6), free_u)) > NOTICEABLE


@pytest.mark.parametrize("settings", [{}, {"start_percent": 0.2, "end_percent": 0.8, "image_guidance": 2.0}])
def test_two_halves_make_the_whole(server, settings: dict[str, float]) -> None:
    def advanced(scene: Scene, model: Link, latent: Link, start: int, end: int) -> Link:
        return scene.add(
            "KSamplerAdvanced",
            **{"model": model, "positive": scene.positive, "negative": scene.negative, "latent_image": latent},
            **{"noise_seed": 5, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"},
            **{"start_at_step": start, "add_noise": "enable" if start == 0 else "disable"},
            **{"end_at_step": end, "return_with_leftover_noise": "enable" if end < 4 else "disable"},
        )

    def drawn(splits: list[int], **settings: Any) -> torch.Tensor:
        scene = Scene(server)
        model = scene.apply(scene.model, **settings)
        latent = scene.add("EmptyLatentImage", width=192, height=128, batch_size=1)
        for start, end in zip([0, *splits], [*splits, 4], strict=True):
            latent = advanced(scene, model, latent, start, end)
        return scene.latents(latent)

    whole = drawn([], **settings)
    assert difference(drawn([2], **settings), whole) < 1e-5
    assert difference(whole, drawn([], strength=0.0)) > NOTICEABLE


def sampler_custom(scene: Scene, model: Link, **how: Link) -> Link:
    prompts = {"positive": scene.positive, "negative": scene.negative}
    return scene.add("SamplerCustom", model=model, add_noise=True, noise_seed=5, cfg=4.0, **prompts, **how)


def guided(class_type: str, **inputs: Any) -> Callable[..., Link]:
    """SamplerCustomAdvanced with a guider. Inputs given as "positive", "negative" and "empty" are prompts."""

    def add(scene: Scene, model: Link, **how: Link) -> Link:
        prompts = {"positive": scene.positive, "negative": scene.negative, "empty": empty_prompt(scene)}
        wired = {name: prompts.get(value, value) for name, value in inputs.items()}
        noise, guider = scene.add("RandomNoise", noise_seed=5), scene.add(class_type, model=model, **wired)
        return scene.add("SamplerCustomAdvanced", noise=noise, guider=guider, **how)

    return add


TWO_PROMPTS = {"positive": "positive", "negative": "negative"}
THREE_PROMPTS = {"cond1": "positive", "cond2": "empty", "negative": "negative"}
TWO_SCALES = {"cfg_conds": 4.0, "cfg_cond2_negative": 3.0}
SAMPLERS: dict[str, Callable[..., Link]] = {
    "SamplerCustom": sampler_custom,
    "BasicGuider": guided("BasicGuider", conditioning="positive"),
    "CFGGuider": guided("CFGGuider", **TWO_PROMPTS, cfg=4.0),
    "DualCFGGuider": guided("DualCFGGuider", **THREE_PROMPTS, **TWO_SCALES, style="regular"),
    "DualCFGGuider, nested": guided("DualCFGGuider", **THREE_PROMPTS, **TWO_SCALES, style="nested"),
    "PerpNegGuider": guided("PerpNegGuider", **TWO_PROMPTS, empty_conditioning="empty", cfg=4.0, neg_scale=1.0),
    "DreamCache Guider": guided("DreamCacheGuider", **TWO_PROMPTS, cfg=4.0, image_guidance=2.0),
}


def custom_picture(server, add_sampler: Callable[..., Link], *nodes: ModelNode) -> torch.Tensor:
    scene = Scene(server)
    model = scene.model
    for add in nodes:
        model = add(scene, model)
    how = {
        "sampler": scene.add("KSamplerSelect", sampler_name="euler"),
        "sigmas": scene.add("BasicScheduler", model=model, scheduler="normal", steps=2, denoise=1.0),
        "latent_image": scene.add("EmptyLatentImage", width=192, height=128, batch_size=1),
    }
    return scene.latents(add_sampler(scene, model, **how))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("settings", [{}, {"image_guidance": 2.0}, {"rows": "conditioned"}], ids=str)
def test_custom_samplers(server, sampler: Callable[..., Link], settings: dict[str, Any]) -> None:
    latents = custom_picture(server, sampler, apply(**settings))
    assert latents.shape == (1, 4, 16, 24)
    assert latents.isfinite().all()
    assert difference(latents, custom_picture(server, sampler, apply(strength=0.0))) > NOTICEABLE


@pytest.mark.parametrize("sampler", ["SamplerCustom", "CFGGuider"])
def test_custom_samplers_draw_what_ksampler_draws(server, sampler: str) -> None:
    guided = apply(image_guidance=2.0)
    assert torch.equal(custom_picture(server, SAMPLERS[sampler], guided), picture(server, guided))


@pytest.mark.parametrize("name", ["PAG", "SAG", "PerpNeg", "RescaleCFG", "NAG"])
def test_the_guider_draws_what_ksampler_draws_with_nodes_that_change_guidance(server, name: str) -> None:
    expected = picture(server, MODEL_NODES[name], apply(image_guidance=2.0))
    drawn = custom_picture(server, SAMPLERS["DreamCache Guider"], MODEL_NODES[name], apply())
    assert difference(drawn, expected) < 1e-5


def test_a_model_that_predicts_v(server) -> None:
    both = picture(server, apply(image_guidance=2.0), MODEL_NODES["RescaleCFG"], structure="sd21_v")
    assert both.isfinite().all()
    assert difference(both, picture(server, MODEL_NODES["RescaleCFG"], structure="sd21_v")) > NOTICEABLE


def test_a_compiled_model_draws_what_it_draws_uncompiled(server, plain, with_reference) -> None:
    """The plain model first: ComfyUI keeps what it compiled for it, references or not."""
    # On the CPU this backend runs the graphs as they were traced; inductor, with its C++, would take minutes.
    compiled = node("TorchCompileModel", backend="cudagraphs")
    assert difference(picture(server, compiled), plain) < 1e-5
    assert torch.equal(picture(server, compiled, apply()), with_reference)
    assert torch.equal(picture(server, apply(), compiled), with_reference)
    changed = apply(end_percent=0.5, image_guidance=2.0)
    assert torch.equal(picture(server, compiled, changed), picture(server, changed))
    assert difference(picture(server, compiled), plain) < 1e-5
