"""The model's own self-attention as an adapter: it is reference-only, computed once for all later runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from benchmarks.speed.counting import bench_on_paper, count_step
from benchmarks.speed.reference_only import reference_only
from benchmarks.speed.variants import OWN_AND_PLAIN, OWN_ATTENTION, PLAIN, READING, REFERENCE_ONLY, VARIANTS
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.adapter.strengths import Strengths
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.combining import average, combine
from dreamcache.dreamcache_core.reference.file import load_references, save_references
from dreamcache.dreamcache_core.reference.noise_levels import NoiseLevels
from dreamcache.nodes import demo_model
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.patching import blocks
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.attention_probe import probe_attention
from dreamcache.nodes.host.patching.caching_pass import record_references, weights_key
from dreamcache.nodes.host.patching.injection import Injection
from support.graph import difference
from support.miniature import models

OWN, ALL_LAYERS = SelfAttentionAdapter(), SelfAttentionAdapter(all_layers=True)
EXACT = 1e-4
"""How far apart the latents of two forms of the same computation may be, as a fraction."""


class Setting:
    """A miniature model, a reference of another size than its images, and prompts."""

    def __init__(self, structure: str = "sd15") -> None:
        self.model, self._clip = models.unet_patcher(structure), models.clip(structure)
        self.positive, self.negative = self.encode("a dog on a beach"), self.encode("blurry")

    def encode(self, prompt: str) -> list:
        return self._clip.encode_from_tokens_scheduled(self._clip.tokenize(prompt))

    def cache(self, references: int = 1, seed: int = 1) -> ReferenceCache:
        latent, noise = torch.randn(2, references, 4, 16, 24, generator=torch.Generator().manual_seed(seed))
        return record_references(self.model, latent, noise, self.encode(""), 1, "")

    def injected(self, cache: ReferenceCache, adapter: SelfAttentionAdapter = OWN, **settings: Any) -> ModelPatcher:
        return inject(self.model, Injection(adapter, cache, **settings))

    def sample(self, model: ModelPatcher, batch: int = 1, **how: Any) -> torch.Tensor:
        how = {"steps": 4, "cfg": 4.0, "sampler": "euler", "scheduler": "normal", "seed": 5, **how}
        latent = torch.zeros(batch, 4, 16, 16)
        noise = comfy.sample.prepare_noise(latent, how["seed"])
        prompts = (self.positive, self.negative)
        settings = (how["steps"], how["cfg"], how["sampler"], how["scheduler"])
        return comfy.sample.sample(model, noise, *settings, *prompts, latent, disable_pbar=True, seed=5)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("structure", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("adapter", [OWN, ALL_LAYERS], ids=["cached layers", "all layers"])
def test_it_is_reference_only(structure: str, adapter: SelfAttentionAdapter) -> None:
    setting = Setting(structure)
    cache = setting.cache()
    (batch,) = cache.batches
    plain_form = reference_only(setting.model, *batch.caching_inputs, adapter)
    settings: list[dict[str, Any]] = [{}, {"sampler": "heun", "scheduler": "karras", "steps": 3}]
    for how in settings:
        ours = setting.sample(setting.injected(cache, adapter), **how)
        expected = setting.sample(plain_form, **how)
        assert difference(ours, expected) < EXACT
        # A region needs the attention without the reference, too.
        everywhere = setting.injected(cache, adapter, region=torch.ones(1, 4, 4))
        assert difference(setting.sample(everywhere, **how), expected) < EXACT
        assert difference(ours, setting.sample(setting.model, **how)) > 100 * EXACT


def test_the_reference_is_encoded_once_for_all_later_runs(setting: Setting) -> None:
    cache = setting.cache()
    (given,) = cache.batches[0].caching_inputs
    passes: list[int] = []
    last = setting.model.model.diffusion_model.output_blocks[10][1]
    hook = setting.model.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(
        lambda _, inputs: passes.append(inputs[0].shape[-1])
    )
    try:
        first = setting.sample(setting.injected(cache))
        # The reference is 24 latent pixels wide, the image 16.
        assert passes.count(24) == len(given.noise_levels) == 4
        passes.clear()
        assert torch.equal(setting.sample(setting.injected(cache)), first)
        setting.sample(setting.injected(cache, strength=0.5), seed=6, cfg=2.0)
        assert not passes.count(24)
        setting.sample(setting.injected(cache), steps=5)
        # The first and the last step of any number are the same noise levels.
        assert passes.count(24) == 3
    finally:
        hook.remove()
    assert not last._forward_pre_hooks


def test_fewer_noise_levels_are_nearly_the_same(setting: Setting) -> None:
    cache, steps = setting.cache(), 10
    exact = setting.sample(setting.injected(cache), steps=steps)
    effect = difference(exact, setting.sample(setting.model, steps=steps))
    (batch,) = cache.batches
    (given,) = batch.caching_inputs
    weights = weights_key(setting.model)
    off = []
    for kept in (10, 5, 2, 1):
        few = NoiseLevels()
        for sigma in given.noise_levels.sigmas(weights)[:: 10 // kept]:
            few.add(sigma, weights, given.noise_levels.nearest(sigma, weights))
        nearest = SelfAttentionAdapter(reuse_within=math.inf)
        approximate = ReferenceCache((replace(batch, caching_inputs=(replace(given, noise_levels=few),)),))
        off.append(difference(setting.sample(setting.injected(approximate, nearest), steps=steps), exact) / effect)
        assert len(few) == kept
    assert off[0] == 0
    assert 0 < max(off[1:3]) < off[3]


def test_other_weights_encode_the_reference_again(setting: Setting) -> None:
    cache = setting.cache()
    setting.sample(setting.injected(cache))
    changed = setting.model.clone()
    name = "diffusion_model.output_blocks.10.1.transformer_blocks.0.attn1.to_q.weight"
    weight = setting.model.get_model_object(name)
    changed.add_patches({name: ("diff", (0.5 * torch.ones_like(weight),))}, 1.0)
    alone = setting.sample(inject(changed, Injection(OWN, setting.cache())))
    assert torch.equal(setting.sample(inject(changed, Injection(OWN, cache))), alone)
    (given,) = cache.batches[0].caching_inputs
    assert len(given.noise_levels) == 8


def test_noise_levels_that_were_not_used_for_longest_make_room() -> None:
    levels = NoiseLevels(limit=2)
    for sigma in (1.0, 2.0):
        levels.add(sigma, "weights", {"layer": torch.full((1, 1, 1, 1), sigma)})
    assert float(levels.nearest(1.1, "weights")["layer"]) == 1.0
    levels.add(4.0, "weights", {"layer": torch.zeros(1, 1, 1, 1)})
    assert [levels.covers(sigma, "weights", frozenset(["layer"]), 0.01) for sigma in (1.0, 2.0, 4.0)] == [
        True,
        False,
        True,
    ]
    with pytest.raises(DreamCacheError, match="Another node evaluates the model outside of its sampling run"):
        levels.nearest(1.0, "other weights")


def test_without_strength_or_out_of_range_it_changes_no_bit(setting: Setting) -> None:
    cache, plain = setting.cache(), setting.sample(setting.model)
    assert torch.equal(setting.sample(setting.injected(cache, strength=0.0, image_guidance=3.0)), plain)
    # 4 steps are evaluated at 0, 33, 67 and 100 %.
    assert torch.equal(setting.sample(setting.injected(cache, start_percent=0.4, end_percent=0.6)), plain)
    first_step = setting.sample(setting.injected(cache, end_percent=0.1))
    assert difference(first_step, plain) > EXACT
    assert torch.equal(setting.sample(setting.model), plain)


@pytest.mark.parametrize("batch", [2, 5])
def test_each_latent_of_a_batch_is_what_it_is_alone(setting: Setting, batch: int) -> None:
    cache = setting.cache()
    together = setting.sample(setting.injected(cache, image_guidance=2.0), batch=batch)
    (alone,) = setting.sample(setting.injected(cache, image_guidance=2.0))
    assert difference(together[0], alone) < EXACT
    assert difference(together[1], alone) > EXACT


def test_each_latent_attends_to_its_own_reference(setting: Setting) -> None:
    one, other = setting.cache(), setting.cache(seed=2)
    pair = setting.sample(setting.injected(combine([one, other], [1.0, 1.0], per_latent=True)), batch=2)
    for number, cache in enumerate((one, other)):
        alone = setting.sample(setting.injected(cache), batch=2)
        assert difference(pair[number], alone[number]) < EXACT
        assert difference(pair[number], alone[1 - number]) > EXACT


def test_a_references_strength_is_how_often_it_is_there(setting: Setting) -> None:
    cache = setting.cache()
    twice = setting.sample(setting.injected(combine([cache, cache], [1.0, 1.0])))
    weighted = setting.sample(setting.injected(combine([cache], [2.0])))
    assert difference(weighted, twice) < EXACT
    assert difference(weighted, setting.sample(setting.injected(cache))) > EXACT


def test_an_average_is_the_mean_at_every_noise_level(setting: Setting) -> None:
    cache = setting.cache()
    assert (
        difference(
            setting.sample(setting.injected(average([cache, cache], [1.0, 3.0]))),
            setting.sample(setting.injected(cache)),
        )
        < EXACT
    )
    mixed = setting.sample(setting.injected(average([cache, setting.cache(seed=2)], [1.0, 1.0])))
    assert difference(mixed, setting.sample(setting.injected(cache))) > EXACT


def test_only_the_subject_is_attended_to(setting: Setting) -> None:
    (batch,) = setting.cache().batches
    left = torch.zeros(1, 16, 24)
    left[..., :12] = 1
    part = ReferenceCache((replace(batch, subject=left),))
    layer = structure_of(setting.model).layers[-1].name
    setting.sample(setting.injected(part, ALL_LAYERS))
    assert int(part.kept(layer)[0].sum()) == 16 * 12
    everything = ReferenceCache((replace(batch, subject=torch.ones_like(left)),))
    whole = setting.sample(setting.injected(ReferenceCache((batch,))))
    assert difference(setting.sample(setting.injected(everything)), whole) < EXACT
    assert difference(setting.sample(setting.injected(part)), whole) > EXACT


def test_a_region_confines_it(setting: Setting) -> None:
    cache, plain = setting.cache(), setting.sample(setting.model, steps=1)
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    fine = Strengths(bottleneck=0, coarse=0, medium=0)
    inside = setting.sample(setting.injected(cache, region=left, strengths=fine), steps=1) - plain
    everywhere = setting.sample(setting.injected(cache, strengths=fine), steps=1) - plain
    # What follows the layer carries some of it over the border.
    assert inside[..., 12:].norm() < 0.25 * everywhere[..., 12:].norm()
    assert inside[..., :4].norm() > 0.75 * everywhere[..., :4].norm()
    assert torch.equal(setting.sample(setting.injected(cache, region=torch.zeros(1, 16, 16)), steps=1), plain)


@pytest.mark.parametrize("name", ["attention_split", "attention_sub_quad", "attention_pytorch"])
def test_every_attention_of_comfyui_gives_the_same(
    setting: Setting, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With references of other strengths, and of other sizes for each latent: both add a bias to the logits."""
    weighted = combine([setting.cache(), setting.cache(2, seed=2)], [1.0, 3.0])
    (batch,) = setting.cache(seed=3).batches
    left = torch.zeros(1, 16, 24)
    left[..., :12] = 1
    part = ReferenceCache((replace(batch, subject=left),))
    per_latent = combine([setting.cache(), part], [1.0, 1.0], per_latent=True)
    for cache, batch_size in ((weighted, 1), (per_latent, 2)):
        expected = setting.sample(setting.injected(cache), batch=batch_size, steps=2)
        with monkeypatch.context() as patched:
            patched.setattr(blocks, "optimized_attention", getattr(comfy_attention, name))
            assert difference(setting.sample(setting.injected(cache), batch=batch_size, steps=2), expected) < 1e-5


def test_attention_maps_share_the_attention_with_the_image_itself(setting: Setting) -> None:
    cache = setting.cache()
    model = setting.injected(cache)
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    probe = probe_attention(model, latent, torch.zeros_like(latent), setting.positive, 0.5)
    (injection,) = {key[0] for key in probe.found}
    (maps,) = probe.maps(injection, 0)
    assert set(maps) == {layer.name for layer in injection.layers}
    for seen in maps.values():
        share = seen.over_image[..., 0]
        assert float(share.min()) > 0 and float(share.max()) < 1
        torch.testing.assert_close(seen.over_reference.sum(), torch.tensor(1.0))


def test_image_guidance_is_reference_onlys_style_fidelity(setting: Setting) -> None:
    """Which blends the negative prompt's prediction, (1 - f) · with + f · without reference: 1 + f · (cfg - 1)."""
    cache, cfg, fidelity = setting.cache(), 4.0, 0.5
    with_reference, without = setting.injected(cache), setting.model
    negative, bare = (setting.sample(model, steps=1, cfg=0.0) for model in (with_reference, without))
    positive = setting.sample(with_reference, steps=1, cfg=1.0)
    blended = (1 - fidelity) * negative + fidelity * bare
    expected = blended + cfg * (positive - blended)
    guided = setting.injected(cache, image_guidance=1 + fidelity * (cfg - 1))
    assert difference(setting.sample(guided, steps=1, cfg=cfg), expected) < EXACT


@pytest.mark.parametrize("adapter", [OWN, ALL_LAYERS], ids=["cached layers", "all layers"])
def test_no_style_fidelity_makes_pictures_dark_or_gaudy_or_white(adapter: SelfAttentionAdapter) -> None:
    """What users of reference-only report, on the demo model at a high CFG: f = 0, 0.17 and 1."""
    networks, cfg = demo_model.load_networks(), 7.0
    latent = networks.vae.encode(demo_model.DreamCacheDemoModel.execute()[4])

    def encode(prompt: str) -> list:
        return networks.clip.encode_from_tokens_scheduled(networks.clip.tokenize(prompt))

    def look(model: ModelPatcher) -> tuple[float, float, float]:
        """Mean brightness, mean saturation, and the share that is white, of two pictures."""
        empty = torch.zeros(2, 4, 16, 16)
        prompts = encode("a turtle on a snowy field"), encode("")
        noise = comfy.sample.prepare_noise(empty, 5)
        drawn = comfy.sample.sample(model, noise, 10, cfg, "euler", "normal", *prompts, empty, disable_pbar=True)
        pictures = networks.vae.decode(drawn).detach()
        largest, smallest = pictures.amax(-1), pictures.amin(-1)
        return float(pictures.mean()), float((largest - smallest).mean()), float((smallest > 0.97).float().mean())

    cache = record_references(networks.model, latent, torch.zeros_like(latent), encode(""), 1, "")
    brightness, saturation, white = look(networks.model)
    for image_guidance in (1.0, 2.0, cfg):
        seen = look(inject(networks.model, Injection(adapter, cache, image_guidance=image_guidance)))
        assert abs(seen[0] - brightness) < 0.1
        assert seen[1] < saturation + 0.05
        assert seen[2] < white + 0.1


def test_saved_it_attends_to_the_same(setting: Setting, tmp_path) -> None:
    one = setting.cache()
    mixed = average([one, setting.cache(2, seed=2)], [1.0, 3.0])
    for cache in (one, mixed, average([mixed, one], [2.0, 1.0])):
        expected = setting.sample(setting.injected(cache))
        save_references(tmp_path / "cup.safetensors", cache)
        loaded = load_references(tmp_path / "cup.safetensors").references
        assert torch.equal(setting.sample(setting.injected(loaded)), expected)
    flat = average([one, setting.cache(2, seed=2)], [1.0 + 2.0 * 1 / 7, 2.0 * 3 / 7])
    assert difference(expected, setting.sample(setting.injected(flat))) < EXACT


def test_a_cache_that_cannot_be_encoded_again_is_refused(setting: Setting, tmp_path) -> None:
    (batch,) = setting.cache().batches
    old = ReferenceCache((replace(batch, caching_inputs=()),))
    save_references(tmp_path / "old.safetensors", old)
    loaded = load_references(tmp_path / "old.safetensors").references
    for cache in (old, loaded):
        with pytest.raises(DreamCacheError, match="holds features of one timestep, which only trained adapters use"):
            setting.injected(cache)
    (given,) = batch.caching_inputs
    narrow = ReferenceCache((replace(batch, caching_inputs=(replace(given, context=given.context[..., :-1]),)),))
    with pytest.raises(DreamCacheError, match="The empty prompt in the reference cache is not one that a U-Net of"):
        setting.injected(narrow)
    with pytest.raises(DreamCacheError, match="was encoded with"):
        inject(models.unet_patcher("sd21"), Injection(OWN, setting.cache()))
    with pytest.raises(DreamCacheError, match=r"load a checkpoint of SD1\.x, SD2\.x or SDXL"):
        inject(models.unet_patcher("flux"), Injection(OWN, setting.cache()))


def test_a_step_costs_what_the_table_says() -> None:
    """In operations, on SD1.5 at full size and 512×512."""
    bench = bench_on_paper()
    plain = count_step(VARIANTS[PLAIN](bench), 512)
    times_plain = {
        name: count_step(VARIANTS[name](bench), 512) / plain
        for name in (READING, OWN_ATTENTION, OWN_AND_PLAIN, REFERENCE_ONLY)
    }
    assert times_plain[READING] < 1.05
    assert 1.03 < times_plain[OWN_ATTENTION] < 1.04
    assert 1.08 < times_plain[OWN_AND_PLAIN] < 1.09
    assert times_plain[REFERENCE_ONLY] > 2.0
