"""The DreamCache node: what the three nodes do, in one."""

from __future__ import annotations

from typing import Any

import torch
from harness.comfyui_server import ComfyUIServer
from support.graph import Link, Scene, adapter_file, failure, output


def one_node(scene: Scene, **settings: Any) -> Link:
    parts = {"model": scene.model, "vae": scene.vae, "clip": scene.clip, "image": scene.image}
    defaults = {"adapter_name": adapter_file(scene.server, "sd15"), "strength": 1.0}
    return scene.add("DreamCacheOneNode", **{**parts, **defaults, **settings})


def three_nodes(scene: Scene, strength: float = 1.0, **reference: Any) -> Link:
    return scene.apply(scene.model, reference_cache=scene.encode(resolution=512, **reference), strength=strength)


def test_one_node_draws_what_the_three_draw(server: ComfyUIServer) -> None:
    drawn = []
    for add in (one_node, three_nodes):
        scene = Scene(server)
        mask = scene.add("SolidMask", value=1.0, width=40, height=40)
        drawn.append(scene.sample(add(scene, strength=0.8, mask=mask), steps=1))
    assert torch.equal(*drawn)


def test_another_strength_does_not_encode_the_reference_again(server: ComfyUIServer) -> None:
    def encodings(strength: float) -> int:
        scene = Scene(server)
        scene.vae = scene.add("MiniatureWatchedVae", vae=scene.vae)
        before = server.log.read_text().count("the watched VAE encodes")
        scene.sample(one_node(scene, strength=strength), steps=1)
        return server.log.read_text().count("the watched VAE encodes") - before

    assert [encodings(strength) for strength in (1.0, 0.5)] == [1, 0]


def test_what_is_wrong_is_told_by_the_node_that_it_is_of(server: ComfyUIServer) -> None:
    scene = Scene(server)
    bare = scene.add("MiniatureBareModel")
    message = failure(lambda: scene.sample(one_node(scene, clip=output(bare, 1)), steps=1))
    assert "load one with Load CLIP" in message
