"""Nodes that draw latents part by part: each has its own prompt, its latent's reference and its part of a region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.combining import combine
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.layout import Layout, Place, find_layout
from support.graph import difference
from support.neighbours import Tiles
from support.studio import Studio, guider
from support.studio import sample as sample_any

SIZE = (16, 64)
sample = partial(sample_any, size=SIZE, steps=1)

TILERS = {"tile by tile": Tiles(), "prompt by prompt": Tiles(prompt_major=True), "rolled": Tiles(shift=5)}
tiled = pytest.mark.parametrize("tiles", TILERS.values(), ids=TILERS.keys())


@tiled
def test_rows_are_told_apart_in_tiles(studio: Studio, applied: Callable, tiles: Tiles) -> None:
    """At a CFG of 1 only the positive prompt counts, and at 0 only the negative."""

    def drawn(cfg: float, **settings: Any) -> torch.Tensor:
        return sample(tiles(applied(studio.model, **settings)), cfg=cfg)

    assert torch.equal(drawn(0.0, rows="conditioned"), drawn(0.0, strength=0.0))
    assert difference(drawn(0.0, rows="unconditioned"), drawn(0.0)) < 1e-5
    pushed = sample(tiles(applied(studio.model, image_guidance=2.0)))
    model = tiles(applied(studio.model))
    assert difference(sample(model, guider(model)), pushed) < 1e-4
    assert difference(sample(model), pushed) > 0.01
    assert torch.equal(sample(applied(tiles(studio.model), rows="conditioned")), drawn(4.0, rows="conditioned"))


@pytest.mark.parametrize("guide", [lambda _: None, guider], ids=["CFG", "DreamCache Guider"])
@pytest.mark.parametrize("prompt_major", [False, True])
def test_tiles_take_their_part_of_a_region(
    studio: Studio, applied: Callable, prompt_major: bool, guide: Callable
) -> None:
    """The left half's tile is all in the region, and the right half's all out of it."""
    tiles = Tiles(prompt_major=prompt_major, overlap=False)
    left_half = torch.zeros(1, 4, 8)
    left_half[..., :4] = 1

    def drawn(**settings: Any) -> torch.Tensor:
        model = tiles(applied(studio.model, **settings))
        return sample(model, guide(model))

    left, right = drawn(region=left_half).chunk(2, dim=-1)
    assert difference(left, drawn().chunk(2, dim=-1)[0]) < 1e-5
    assert difference(right, drawn(strength=0.0).chunk(2, dim=-1)[1]) < 1e-5


@pytest.mark.parametrize("own", [False, True], ids=["trained", "own attention"])
@tiled
def test_tiles_of_a_batch_take_their_latents_reference_and_mask(studio: Studio, own: bool, tiles: Tiles) -> None:
    one, other = studio.cache(), studio.cache(seed=2)

    def drawn(*caches: ReferenceCache, region: torch.Tensor | None = None) -> torch.Tensor:
        cache = combine(caches, [1.0] * len(caches), per_latent=len(caches) > 1)
        injection = studio.injection(cache=cache, region=region, rows="conditioned")
        if own:
            injection = replace(injection, adapter=SelfAttentionAdapter())
        return sample(tiles(inject(studio.model, injection)), batch=3)

    first, second, plain = drawn(one), drawn(other), sample(tiles(studio.model), batch=3)
    mixed = drawn(one, other, one)
    masked = drawn(one, region=torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1).expand(3, *SIZE))
    for number in range(3):
        assert difference(mixed[number], (first, second, first)[number][number]) < 1e-4
        assert difference(masked[number], (first, plain, first)[number][number]) < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"region": torch.ones(1, 8, 8)},
            "evaluates parts of 16 × 32 of the latents and doesn't say where",
        ),
        ({"rows": "conditioned"}, "so that positive and negative prompts can't be told apart: set rows to both"),
        ({"region": torch.ones(2, 8, 8)}, "latents at a time where the batch has 2, and doesn't say which"),
    ],
    ids=["region", "rows", "mask for each latent"],
)
def test_parts_that_cannot_be_told_are_refused_where_it_matters(
    studio: Studio, applied: Callable, settings: dict[str, Any], message: str
) -> None:
    changes_values = Tiles(noise=0.01)
    batch = len(settings.get("region", [0]))
    with pytest.raises(DreamCacheError, match=message):
        sample(changes_values(applied(studio.model, **settings)), batch=batch)
    drawn = sample(changes_values(applied(studio.model)), batch=batch)
    assert difference(drawn, sample(changes_values(studio.model), batch=batch)) > 0.01


def test_a_layout_is_found_by_values() -> None:
    latents = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    latents[2] = latents[1]
    left, right, across = latents[..., :6], latents[..., 6:], torch.cat([latents[..., 8:], latents[..., :2]], dim=-1)
    for places, parts in (
        ([(0, 0, 0), (0, 0, 6)], [left[0], right[0]]),
        ([(1, 0, 0), (2, 0, 0)], [left[1], left[2]]),
        ([(0, 0, 8), (0, 0, 6)], [across[0], right[0]]),
    ):
        size, found = (8, 6), tuple(Place(*place) for place in places)
        assert find_layout(torch.stack([*parts, *parts]), latents, 2) == Layout(size, found * 2, (0, 0, 1, 1))
        in_turns = [part for part in parts for _ in range(2)]
        if places[0][0] == 0:
            expected = Layout(size, tuple(place for place in found for _ in range(2)), (0, 1, 0, 1))
            assert find_layout(torch.stack(in_turns), latents, 2) == expected
    assert find_layout(torch.stack([left[0], left[0], right[0]]), latents, 2).prompts == ()
    assert find_layout(left[:1] + 1e-4, latents, 1) == Layout((8, 6))
    assert find_layout(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 8, 12), 1) == Layout((4, 4))
    assert find_layout(torch.zeros(1, 4, 16, 16), latents, 1) == Layout((16, 16))
