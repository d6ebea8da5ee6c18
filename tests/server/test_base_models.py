"""SDXL, and models distilled from it or from SD1.5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.unet import read_structure, select_layers
from dreamcache.nodes.host.base_model import structure_of
from harness import generated_weights
from harness.comfyui_server import ComfyUIServer
from support.graph import Link, Scene, difference
from support.miniature import models


def test_sdxl_at_full_size_has_an_adapter_on_the_first_block_of_four_transformers() -> None:
    layers = select_layers(generated_weights.full_size_structure("SDXL").layers)
    assert [(layer.name, layer.channels, layer.heads) for layer in layers] == [
        ("middle_block.1", 1280, 20),
        ("output_blocks.1.1", 1280, 20),
        ("output_blocks.3.1", 640, 10),
        ("output_blocks.5.1", 640, 10),
    ]
    with torch.device("meta"):
        assert Adapter(layers, "SDXL").parameter_count == 24_591_360


def test_a_distilled_unet_without_transformers_in_its_middle_has_an_adapter_of_its_own() -> None:
    whole, distilled = (structure_of(models.unet_patcher(name)) for name in ("sdxl", "ssd1b"))
    assert select_layers(distilled.layers) == select_layers(whole.layers)[1:]
    with pytest.raises(DreamCacheError, match=r"lacks \(middle_block\.1\), as distilled models do: load an adapter"):
        Adapter(select_layers(whole.layers), whole.base_model).check_fits(distilled)


@pytest.mark.parametrize("structure", ["sdxl", "ssd1b"])
def test_sdxl_draws_with_a_reference(server: ComfyUIServer, structure: str) -> None:
    def draw(**settings: Any) -> torch.Tensor:
        scene = Scene(server, structure)
        return scene.sample(scene.apply(scene.model, **settings), steps=2)

    scene = Scene(server, structure)
    plain, drawn = scene.sample(scene.model, steps=2), draw()
    assert torch.equal(draw(strength=0.0), plain)
    assert drawn.isfinite().all()
    assert difference(drawn, plain) > 0.01
    assert difference(draw(rows="conditioned", image_guidance=2.0), drawn) > 0.01


def test_a_unet_that_mixes_frames_is_refused() -> None:
    temporal = {"use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True}
    video = {"merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1]}
    unet = models.model_config("sd15", **temporal, **video).get_model({}, device="meta").diffusion_model
    with pytest.raises(DreamCacheError, match=r"single images, and SVD is not one: load a checkpoint of SD1\.x"):
        read_structure(unet, "SVD")


def lcm(scene: Scene) -> Link:
    return scene.add("ModelSamplingDiscrete", model=scene.model, sampling="lcm", zsnr=False)


def draw_with_lcm(server: ComfyUIServer, encoded_by_lcm: bool = False, **settings: Any) -> torch.Tensor:
    scene = Scene(server)
    model = lcm(scene)
    if encoded_by_lcm:
        settings["reference_cache"] = scene.encode(model=model)
    return scene.sample(scene.apply(model, **settings), sampler_name="lcm", scheduler="simple", cfg=1.0)


def test_a_distilled_schedule_leaves_the_reference_as_it_is(server: ComfyUIServer) -> None:
    """LCM knows 50 timesteps, and 1, at which references are read, is none of them."""
    assert torch.equal(draw_with_lcm(server, encoded_by_lcm=True), draw_with_lcm(server))


def test_percents_of_a_distilled_schedule(server: ComfyUIServer) -> None:
    # 4 steps are evaluated at 0, 24, 50 and 74 %.
    scene = Scene(server)
    plain = scene.sample(lcm(scene), sampler_name="lcm", scheduler="simple", cfg=1.0)
    assert torch.equal(draw_with_lcm(server, start_percent=0.55, end_percent=0.7), plain)
    assert not torch.equal(draw_with_lcm(server, start_percent=0.45, end_percent=0.55), plain)
