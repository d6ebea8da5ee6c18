"""The preview of attention: where a layer looks in its references is what its adapter's attention is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.figures.attention_sheet import CAPTION, SIDE
from dreamcache.dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.combining import combine
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.attention_probe import AttentionProbe, probe_attention
from dreamcache.nodes.host.patching.injection import Injection
from harness.comfyui_server import ComfyUIServer
from PIL import Image
from support.graph import Scene, failure
from support.studio import Studio, prompt

LEFT_HALF = torch.ones(1, 16, 24)
LEFT_HALF[..., 12:] = 0


def naive(query: torch.Tensor, key: torch.Tensor, heads: int, bias: torch.Tensor) -> torch.Tensor:
    """The whole attention, mean of all heads: (tokens, cached tokens)."""
    queries, keys = (tensor.unflatten(-1, (heads, -1)).transpose(0, 1) for tensor in (query, key))
    return (queries @ keys.mT / queries.shape[-1] ** 0.5 + bias).softmax(-1).mean(0)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio()


def probed(studio: Studio, *injections: Injection, prompts: int = 1, **how: Any) -> AttentionProbe:
    model = studio.model
    for injection in injections:
        model = inject(model, injection)
    torch.manual_seed(3)
    latent = torch.randn(2, 4, 16, 24)
    positive = [[prompt(number), {"area": (8, 8, 0, 0)}] for number in range(prompts)]
    return probe_attention(model, latent, torch.randn_like(latent), positive, 0.5, **how)


def test_what_is_watched_is_the_attention_of_the_adapter_to_what_it_reads(studio: Studio) -> None:
    layer = "output_blocks.4.1"
    adapter = studio.adapter.model[layer]
    made: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(adapter, name).register_forward_hook(lambda _, __, result, name=name: made.update({name: result}))
        for name in ("to_q", "to_k")
    ]
    part = ReferenceCache((replace(studio.cache().batches[0], subject=LEFT_HALF),))
    try:
        injection = studio.injection(cache=combine([part, studio.cache(2, seed=2)], [1.0, 3.0]), image_guidance=2.0)
        maps = probed(studio, injection).maps(injection, 1)
        whole = naive(made["to_q"][1], made["to_k"][0], adapter.heads, injection.cache.bias(layer)[0])
        # 4×6 tokens of each, of which the first reference's left half is read.
        received = [each[layer].over_reference for each in maps]
        expected = [received[0][:, :3], *received[1:]]
        torch.testing.assert_close(torch.cat([each.flatten() for each in expected]), whole.mean(0))
        assert [set(each) for each in maps] == [{own.name for own in studio.adapter.model.layers}] * 3
    finally:
        for hook in hooks:
            hook.remove()


def test_each_latent_looks_at_its_own_reference_and_only_where_one_asks(studio: Studio) -> None:
    one, other = studio.cache(), studio.cache(seed=2)
    pair = combine([one, other], [1.0, 1.0], per_latent=True)
    paired = studio.injection(cache=pair, rows="conditioned")
    both = probed(studio, paired, prompts=2, region=LEFT_HALF)
    assert all(len(prompts) == 2 for prompts in both.found.values())
    for number, cache in enumerate((one, other)):
        alone = studio.injection(cache=cache)
        (expected,) = probed(studio, alone, prompts=2, region=LEFT_HALF).maps(alone, number)
        (maps,) = both.maps(paired, number)
        for layer, each in maps.items():
            torch.testing.assert_close(each.over_image, expected[layer].over_image)
            torch.testing.assert_close(each.over_reference, expected[layer].over_reference)
        share = maps["output_blocks.10.1"].over_image[..., 0]
        torch.testing.assert_close(share, LEFT_HALF[0])


def test_the_node_shows_both_pictures_at_each_noise_level_at_which_a_reference_is_read(server: ComfyUIServer) -> None:
    scene = Scene(server)
    named = {"references.reference_1": scene.reference, "references.reference_2": scene.encode(resolution=64)}
    several = scene.add("DreamCacheCombineReferences", mode="concatenate", strengths="1, 2", **named)
    black = scene.add("SolidMask", value=0.0, width=192, height=128)
    white = scene.add("SolidMask", value=1.0, width=96, height=128)
    half = scene.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")
    model = scene.apply(scene.apply(scene.model, region=half), reference_cache=several, end_percent=0.5)
    image = scene.add("MiniatureImages", count=2, height=128, width=192, channels=3)
    settings = {"start_percent": 0.0, "end_percent": 1.0, "noise_levels": 2, "seed": 0}
    inputs = {"vae": scene.vae, "image": image, "positive": scene.positive, **settings}
    scene.add("DreamCachePreviewAttention", model=model, **inputs)
    shown = server.run(scene.prompt).images
    assert len(shown) == 2
    sheet = Image.open(server.download(shown[0], server.base / "sheet.png")).convert("HSV")
    # Two rows for each of 3 references at the first level; at the second for one, and one for each that isn't read.
    expected = TileSheet(CAPTION, [Section("title", [Tile("label", None)] * 6)] * (6 + 2 + 2), columns=6, side=SIDE)
    assert sheet.width == expected.width
    assert sheet.height == pytest.approx(expected.boxes()[-1][-1][3], abs=200)
    # There is no colour where the first reference doesn't enter.
    left, top, right, _ = expected.boxes()[0][-1]
    saturation = to_tensor(sheet.getchannel("S"))[top : top + 2 * SIDE // 3]
    middle = (left + right) // 2
    assert saturation[:, left : middle - 1].max() > 0
    assert saturation[:, middle + 1 : right].max() == 0

    scene.add("DreamCachePreviewAttention", model=scene.model, **inputs)
    assert "connect the model from Apply DreamCache" in failure(lambda: server.run(scene.prompt))
