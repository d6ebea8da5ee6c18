"""The ComfyUIs that the pack supports: it does the same in each, to the bit, and tells an older one what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import torch
from dreamcache.nodes.host.version_check import OLDEST_COMFYUI
from harness import environment
from harness.comfyui_server import ComfyUIServer
from harness.front_end import open_front_end, place_models
from harness.workflow_prompt import WORKFLOWS, demo_prompt, set_inputs
from support.graph import Graph, Link, Scene, failure, output, triplets_folder
from support.miniature import models

ROOT = environment.ROOT
PACKS = {"dreamcache": ROOT, "miniature": ROOT / "tests" / "support" / "miniature"}


def two_subjects(scene: Scene) -> Link:
    """A model with references, regions, strengths and guidance."""
    region = scene.add("SolidMask", value=0.7, width=192, height=128)
    factors = {"bottleneck": 0.5, "coarse": 1.0, "medium": 1.0, "fine": 0.8}
    strengths = scene.add("DreamCacheStrengths", **factors, over_sampling="list", values="1, 0.5")
    model = scene.apply(scene.model, region=region, strengths=strengths, rows="conditioned")
    return scene.apply(model, reference_cache=scene.encode(seed=3), strength=0.5, image_guidance=2.0)


def everything(server: ComfyUIServer) -> tuple[torch.Tensor, ...]:
    """What two references draw, what an adapter that was trained for two steps draws, and what the demo model draws."""
    scene = Scene(server)
    drawn = scene.sample(two_subjects(scene), steps=2)
    triplets_folder(server)
    scene = Scene(server)
    trained = scene.train("everything", steps=2)
    demo = Graph(server, demo_prompt(server))
    set_inputs(demo.prompt, "KSampler", steps=2)
    (sampler,) = (number for number, node in demo.prompt.items() if node["class_type"] == "KSampler")
    return drawn, scene.sample(scene.apply(scene.model, adapter=trained), steps=1), demo.latents([sampler, 0])


def nodes_of(server: ComfyUIServer) -> set[str]:
    return {name for name, node in server.object_info().items() if node["python_module"] == "custom_nodes.dreamcache"}


@pytest.fixture(scope="module")
def expected(server: ComfyUIServer) -> tuple[torch.Tensor, ...]:
    return everything(server)


@pytest.mark.skipif("COMFYUI_PATH" in os.environ, reason="older ones run on the environment's packages")
@pytest.mark.parametrize("version", environment.OLDER_COMFYUIS)
def test_an_older_comfyui_has_every_node_and_draws_the_same_and_opens_every_template(
    server: ComfyUIServer, expected: tuple[torch.Tensor, ...], version: str
) -> None:
    made = environment.older(version)
    with ComfyUIServer(made, PACKS) as older:
        older.upload_image(environment.ensure().comfyui / "input" / "example.png")
        assert nodes_of(older) == nodes_of(server)
        made_there = everything(older)
        assert all(torch.equal(one, other) for one, other in zip(made_there, expected, strict=True))
        scene = Scene(older)
        other = scene.add("MiniatureModel", structure="sd21", seed=models.SEED)
        own = {"model": other, "clip": output(other, 1), "vae": output(other, 2)}
        message = failure(lambda: scene.sample(scene.apply(scene.model, reference_cache=scene.encode(**own)), steps=1))
        assert "The reference cache was encoded with" in message
        assert _errors_of_templates(older) == []


def _errors_of_templates(server: ComfyUIServer) -> list[str]:
    """What the console of its own front end says while every template is opened: by the README's link, or as a file."""
    place_models(server)
    with open_front_end(server) as front_end:
        front_end.page.goto(f"{server.url}?template=dreamcache_demo&source=dreamcache")
        front_end.page.wait_for_function("window.app?.graph?.findNodesByType('DreamCacheDemoModel').length")
        known = server.object_info().keys() | {"MarkdownNote"}
        for name, path in WORKFLOWS.items():
            workflow = json.loads(path.read_text(encoding="utf-8"))
            if {node["type"] for node in workflow["nodes"]} <= known:
                front_end.load(workflow)
            else:  # Older ones can't remove backgrounds.
                assert name == "dreamcache_make_triplets"
        return front_end.errors


def test_a_comfyui_that_is_too_old_is_told_so(tmp_path: Path) -> None:
    """Before anything is imported that it hasn't got: here it has nothing but its version."""
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.15.1"\n')
    (tmp_path / "dreamcache").symlink_to(ROOT)
    done = subprocess.run([sys.executable, "-c", "import dreamcache"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.endswith(
        f"ImportError: DreamCache needs ComfyUI {OLDEST_COMFYUI} or newer, but this is 0.15.1: update ComfyUI.\n"
    )


def test_the_oldest_comfyui_is_tested_and_told_everywhere() -> None:
    assert environment.OLDER_COMFYUIS[-1] == OLDEST_COMFYUI
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={OLDEST_COMFYUI}"
    assert f"ComfyUI {OLDEST_COMFYUI} or newer" in (ROOT / "README.md").read_text()
