"""Regions of the picture and of the reference: what is injected stays in its place, and only the subject is read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.strengths import Strengths
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.combining import combine
from harness.comfyui_server import WorkflowError
from support.graph import Link, Scene, difference
from support.studio import Studio

FIRST_LAYERS = {"bottleneck": "middle_block.1", "coarse": "output_blocks.4.1", "medium": "output_blocks.6.1"}
FIRST_LAYERS["fine"] = "output_blocks.10.1"
"""Of each group, the first that is adapted, as far as which nothing else differs."""


def left_half(height: int, width: int) -> torch.Tensor:
    """A mask that is white on the left: (1, height, width)."""
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


# The U-Net makes 17×15, 9×8 and 5×4 of 33×29.
@pytest.mark.parametrize("size", [(16, 24), (33, 29)], ids=str)
@pytest.mark.parametrize("mask_size", [(128, 192), (7, 300)], ids=str)
@pytest.mark.parametrize("group", FIRST_LAYERS)
def test_outside_its_region_a_reference_changes_no_bit_of_a_layer(
    studio: Studio, size: tuple[int, int], mask_size: tuple[int, int], group: str
) -> None:
    how: dict[str, Any] = {"layer": FIRST_LAYERS[group], "size": size}
    factors: dict[str, Any] = {each: float(each == group) for each in FIRST_LAYERS}
    _, plain = studio.draw(**how)
    _, drawn = studio.draw(studio.injection(region=left_half(*mask_size), strengths=Strengths(**factors)), **how)
    changed = (drawn != plain).any(dim=2)
    columns = torch.arange(changed.shape[-1])
    middle = changed.shape[-1] / 2
    assert not changed[..., columns >= middle].any()
    assert changed[..., columns + 1 <= middle].all()


def test_two_references_act_each_in_its_region(studio: Studio) -> None:
    mask = left_half(33, 30)
    left, right = studio.injection(region=mask), studio.injection(cache=studio.cache(seed=2), region=1 - mask)
    size = (33, 30)
    _, both = studio.draw(left, right, size=size)
    for region, injection in ((slice(0, 2), left), (slice(2, 4), right)):
        _, alone = studio.draw(replace(injection, region=None), size=size)
        assert torch.equal(both[..., region], alone[..., region])


def test_each_latent_of_a_batch_has_its_region(studio: Studio) -> None:
    mask = left_half(32, 48)
    _, plain = studio.draw(batch=2)
    _, drawn = studio.draw(studio.injection(region=torch.cat([mask, 1 - mask])), batch=2)
    changed = (drawn != plain).any(dim=2)
    # The middle block sees 16×24 latents as 2×3 tokens, the second column of which is half in either region.
    expected = torch.tensor([[True, True, False], [False, True, True]])
    assert torch.equal(changed, expected.reshape(1, 2, 1, 3).expand_as(changed))


def test_grey_lets_that_much_of_the_reference_in(studio: Studio) -> None:
    grey, quarter = torch.full((1, 5, 5), 0.25), studio.injection(strength=0.25)
    assert torch.equal(studio.draw(studio.injection(region=grey))[0], studio.draw(quarter)[0])


def test_a_prompt_with_an_area_sees_its_part_of_the_region(studio: Studio) -> None:
    right: dict[str, Any] = {"area": (16, 8, 0, 16)}
    everywhere = studio.injection()
    plain, drawn = studio.draw(**right), studio.draw(everywhere, **right)
    mask = torch.zeros(1, 128, 192)
    mask[..., 128:] = 1
    assert torch.equal(studio.draw(replace(everywhere, region=1 - mask), **right)[1], plain[1])
    assert torch.equal(studio.draw(replace(everywhere, region=mask), **right)[1], drawn[1])
    assert not torch.equal(plain[1], drawn[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_combination_draws_and_changes_no_bit_of_what_it_should_not_reach(dtype: torch.dtype) -> None:
    studio = Studio(dtype)
    caches = [studio.cache(), studio.cache(references=3)]
    for batch in (1, 2, 5):
        how: dict[str, Any] = {"batch": batch, "size": (8, 16)}
        plain, untouched = studio.draw(**how)
        regions = left_half(50, 30).repeat(batch, 1, 1)
        regions[1:][-1:] = 0  # Of the last latent, if it isn't the only one.
        for cache, rows, region in itertools.product(caches, ("both", "conditioned"), (None, regions)):
            latents, drawn = studio.draw(studio.injection(cache, rows=rows, region=region), **how)
            assert latents.shape == plain.shape
            assert latents.isfinite().all()
            # The middle block's two tokens, of each latent, of the negative prompt and of the positive.
            reached = torch.ones(2, batch, 1, 2, dtype=torch.bool)
            if rows == "conditioned":
                reached[0] = False
            if region is not None:
                reached[..., 1] = False
                reached[:, 1:][:, -1:] = False
            assert torch.equal((drawn != untouched).any(dim=2), reached)
            for number in range(batch):
                assert torch.equal(latents[number], plain[number]) != reached[:, number].any()


def half_white(scene: Scene, height: int = 60) -> Link:
    black = scene.add("SolidMask", value=0.0, width=100, height=height)
    white = scene.add("SolidMask", value=1.0, width=50, height=height)
    return scene.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")


def test_a_white_region_is_none_and_a_black_one_no_reference(server) -> None:
    def drawn(**settings: Any) -> torch.Tensor:
        scene = Scene(server)
        if "region" in settings:
            settings["region"] = scene.add("SolidMask", value=settings["region"], width=100, height=60)
        return scene.sample(scene.apply(scene.model, **settings))

    assert torch.equal(drawn(region=1.0), drawn())
    assert torch.equal(drawn(region=0.0), drawn(strength=0.0))


@pytest.mark.parametrize(
    "settings", [{}, {"image_guidance": 2.0}, {"rows": "conditioned"}, {"start_percent": 0.2, "end_percent": 0.8}]
)
def test_a_region_is_drawn_together_with_everything_else(server, settings: dict[str, Any]) -> None:
    def drawn(region: bool) -> torch.Tensor:
        scene = Scene(server)
        regions = {"region": half_white(scene)} if region else {}
        empty = scene.add("EmptyLatentImage", width=200, height=136, batch_size=2)
        return scene.sample(scene.apply(scene.model, **regions, **settings), latent_image=empty, steps=3)

    assert drawn(region=True).isfinite().all()
    assert not torch.equal(drawn(region=True), drawn(region=False))


def test_regions_for_some_of_the_latents_are_refused(server) -> None:
    scene = Scene(server)
    images = scene.add("MiniatureImages", count=2, height=64, width=64, channels=3)
    masks = scene.add("ImageToMask", image=images, channel="red")
    empty = scene.add("EmptyLatentImage", width=192, height=128, batch_size=3)
    sampler = scene.sampler(scene.apply(scene.model, region=masks), latent_image=empty)
    with pytest.raises(WorkflowError, match=r"holds 2 masks and the batch 3 latents: connect one mask for all"):
        scene.latents(sampler)


# --- The reference ---------------------------------------------------------------------------------------------------


def test_what_is_around_the_subject_makes_no_difference_to_any_bit(studio: Studio) -> None:
    batch = replace(studio.cache().batches[0], subject=left_half(16, 24))
    around = {layer: tensor.clone() for layer, tensor in batch.features.items()}
    around["output_blocks.10.1"][..., 12:] = 7.0
    injection = studio.injection(cache=ReferenceCache((batch,)))
    changed = replace(injection, cache=ReferenceCache((replace(batch, features=around),)))
    assert torch.equal(studio.draw(injection)[0], studio.draw(changed)[0])


def test_each_latent_reads_only_the_subject_of_its_own_reference(studio: Studio) -> None:
    whole, other = studio.cache(), studio.cache(seed=2)
    part = ReferenceCache((replace(whole.batches[0], subject=left_half(16, 24)),))
    paired = studio.injection(cache=combine([part, other], [1.0, 1.0], per_latent=True))
    _, both = studio.draw(paired, batch=2)
    for number, cache in enumerate((part, other)):
        _, alone = studio.draw(studio.injection(cache=cache), batch=2)
        assert difference(both[:, number], alone[:, number]) < 1e-4
    _, of_whole = studio.draw(studio.injection(cache=whole), batch=2)
    assert difference(both[:, 0], of_whole[:, 0]) > 1e-3


def test_subject_only_reads_what_the_mask_has(server) -> None:
    def drawn(mask: bool, **settings: Any) -> torch.Tensor:
        scene = Scene(server)
        masks = {"mask": half_white(scene, height=100)} if mask else {}  # Of the picture's shape.
        return scene.sample(scene.apply(scene.model, reference_cache=scene.encode(**masks, **settings)))

    assert torch.equal(drawn(mask=True, subject_only=False), drawn(mask=True))
    assert difference(drawn(mask=True, subject_only=True), drawn(mask=True)) > 0.01
    assert torch.equal(drawn(mask=False, subject_only=True), drawn(mask=False))
