"""Stable Diffusion at full size: checkpoints in the original LDM layout, through the shipped workflow.

Their weights are generated, which proves shapes, files and memory. What they draw is noise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import full_size
from harness import environment
from harness.comfyui_server import ComfyUIServer, Prompt
from harness.generated_weights import generated_tensor, write_models
from harness.workflow_prompt import OWN_ATTENTION, PHOTOGRAPH, WORKFLOWS, load_prompt, set_inputs, without_reference
from support.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
AUTHORS_NAMES = ROOT / "tests" / "support" / "conformance" / "official_format_sd21_keys.json"
"""The names and shapes in the adapter that the paper's authors publish for SD2.1."""


@pytest.fixture(scope="module")
def full_size_server(request: pytest.FixtureRequest) -> Iterator[tuple[ComfyUIServer, str]]:
    """A server of its own, which gives back its memory at the end, and the name of its models."""
    models = write_models(full_size.BASE / "models", request.param, full_size.SEED)
    arguments = full_size.server_arguments(request.param)
    with ComfyUIServer(environment.ensure(), {"dreamcache": ROOT}, full_size.BASE, arguments) as server:
        yield server, models


on_sd15 = pytest.mark.parametrize("full_size_server", ["SD15"], indirect=True)
on_both = pytest.mark.parametrize("full_size_server", ["SD15", "SD20"], indirect=True)
SDXL = pytest.param("SDXL", marks=pytest.mark.skipif("SDXL" not in os.environ, reason="16 GB of memory: set SDXL=1"))
on_all = pytest.mark.parametrize("full_size_server", ["SD15", "SD20", SDXL], indirect=True)


def undecoded(server: ComfyUIServer, prompt: Prompt) -> torch.Tensor:
    """What the sampler of a prompt makes. Decoding it takes as long as several steps, and is not ours."""
    (decoder,) = (node for node in prompt.values() if node["class_type"] == "VAEDecode")
    nodes = {number: node for number, node in prompt.items() if node["class_type"] not in ("VAEDecode", "SaveImage")}
    return Graph(server, nodes).latents(decoder["inputs"]["samples"], timeout=1200)


@on_sd15
def test_the_shipped_workflow_draws_at_512(full_size_server) -> None:
    server, models = full_size_server
    prompt = full_size.workflow(server, models, (512, 512, 1))
    # One row, for time's sake; the test below has both prompts.
    set_inputs(prompt, "KSampler", steps=1, cfg=1.0)
    drawn = undecoded(server, prompt)
    assert drawn.shape == (1, 4, 64, 64)
    assert drawn.isfinite().all()


@on_sd15
def test_a_size_that_is_no_multiple_of_64_keeps_every_promise(full_size_server) -> None:
    server, models = full_size_server

    def latents(run: int, strength: float = 1.0, reference: bool = True):
        prompt = full_size.workflow(server, models, (232, 200, 1))
        # `run` is no input of the node's, but keeps the server from answering with what it has made before.
        set_inputs(prompt, "KSampler", steps=1, run=run)
        set_inputs(prompt, "DreamCacheEncodeReference", resolution=256)
        set_inputs(prompt, "ApplyDreamCache", strength=strength)
        return undecoded(server, prompt if reference else without_reference(prompt))

    plain = latents(run=1, reference=False)
    assert plain.shape == (1, 4, 25, 29)
    assert latents(run=2, strength=0.0).equal(plain)
    changed = latents(run=3)
    assert changed.isfinite().all()
    assert not changed.equal(plain)
    assert latents(run=4).equal(changed)


@on_all
def test_the_models_own_attention_needs_no_adapter(full_size_server) -> None:
    server, models = full_size_server

    def latents(run: int, **settings: float):
        prompt = full_size.workflow(server, models, (232, 200, 1), OWN_ATTENTION[0])
        set_inputs(prompt, "KSampler", steps=1, run=run)
        set_inputs(prompt, "DreamCacheEncodeReference", resolution=256)
        set_inputs(prompt, "ApplyDreamCache", **{"image_guidance": 1.0, **settings})
        return undecoded(server, prompt)

    changed = latents(run=1)
    assert changed.isfinite().all()
    assert latents(run=2).equal(changed)
    assert not latents(run=3, strength=0.0).equal(changed)


@pytest.mark.parametrize("full_size_server", ["SD20"], indirect=True)
def test_the_authors_adapter_draws_through_its_template(full_size_server) -> None:
    """As a newcomer places it: their `.pt` in models/dreamcache, and the checkpoint that it was trained on."""
    server, models = full_size_server
    folder = server.base / "models" / "dreamcache"
    shapes = json.loads(AUTHORS_NAMES.read_text())
    tensors = {name: generated_tensor(name, tuple(shape), full_size.SEED).half() for name, shape in shapes.items()}
    torch.save(tensors, folder / "dreamcache_sd21.pt")
    prompt = load_prompt(WORKFLOWS["dreamcache_sd21"], server.object_info())
    set_inputs(prompt, "CheckpointLoaderSimple", ckpt_name=models)
    set_inputs(prompt, "LoadImage", image=server.upload_image(PHOTOGRAPH))
    set_inputs(prompt, "KSampler", steps=1, cfg=1.0)
    set_inputs(prompt, "ApplyDreamCache", image_guidance=1.0)
    drawn = undecoded(server, prompt)
    assert drawn.shape == (1, 4, 64, 64)
    assert drawn.isfinite().all()
    # SD2.1-base predicts noise, unlike the SD2.1 of 768 pixels.
    assert "model_type EPS" in (server.base / "server.log").read_text()


@on_both
def test_the_adapter_has_the_papers_parameters(full_size_server) -> None:
    server, models = full_size_server
    graph = Graph(server)
    loader = graph.add("DreamCacheAdapterLoader", adapter_name=models)
    preview, _ = graph.add("PreviewAny", source=[loader[0], 1])
    (info,) = server.run(graph.prompt).outputs[preview]["text"]
    assert "25,207,040 parameters" in info
