"""DreamCache Demo Model: the model that comes with the pack is used as any checkpoint is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import comfy.latent_formats
import latent_preview
import pytest
import torch
from demo_recipe import artwork
from demo_recipe.artwork import PACKAGES, Subject
from demo_recipe.evaluation import IMAGE_GUIDANCE, Case, Judge, Studio
from demo_recipe.yardstick import Yardstick
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.tensor_file import read_tensors
from dreamcache.nodes import demo_model
from dreamcache.nodes.host.base_model import weights_of
from dreamcache.nodes.host.patching.injection import wrap_for_sampling
from harness.comfyui_server import ComfyUIServer, Prompt
from harness.environment import ROOT
from harness.workflow_prompt import demo_prompt, set_inputs, without_reference
from safetensors.torch import load_file, save_file
from support.graph import Graph, difference
from support.miniature import models

SUBJECTS = ROOT / "tests" / "support" / "subjects"
"""Some of those held out from all trainings, and what measures pictures of them."""
FOUND, RANK_GAIN, COLOUR_GAIN, STRUCTURE_GAIN, RIGHT_BACKGROUNDS = 0.9, 0.4, 0.12, 0.35, 0.9

MODEL, ADAPTER = demo_model.FOLDER / demo_model.MODEL_FILE, demo_model.FOLDER / demo_model.ADAPTER_FILE


@pytest.fixture(scope="module")
def networks() -> demo_model.DemoNetworks:
    return demo_model.load_networks()


@pytest.fixture
def prompt(server: ComfyUIServer) -> Prompt:
    """The workflow, but for fewer steps."""
    prompt = demo_prompt(server)
    set_inputs(prompt, "KSampler", steps=4)
    return prompt


def test_the_workflow_draws_the_subject_at_the_size_of_the_model(server: ComfyUIServer, prompt: Prompt) -> None:
    personalised, plain = latents(server, prompt), latents(server, without_reference(prompt))
    assert personalised.shape == (1, 4, 16, 16)
    assert personalised.isfinite().all()
    assert difference(personalised, plain) > 0.01


def test_a_saved_reference_of_it_draws_the_same(server: ComfyUIServer, prompt: Prompt) -> None:
    expected = latents(server, prompt)
    graph = Graph(server, {**prompt})
    graph.add(
        "DreamCacheSaveReferenceCache",
        reference_cache=[number_of(prompt, "DreamCacheEncodeReference"), 0],
        filename_prefix="of_the_demo",
        precision="float16",
        layers="middle and decoder",
    )
    server.run(graph.prompt)
    (path,) = (server.base / "models" / "dreamcache_references").glob("of_the_demo*")
    graph = Graph(server, {**prompt})
    loaded = graph.add("DreamCacheLoadReferenceCache", reference_name=path.name)
    set_inputs(graph.prompt, "ApplyDreamCache", reference_cache=loaded)
    assert difference(latents(server, graph.prompt), expected) < 0.01


def test_a_lora_for_it_changes_the_picture(
    server: ComfyUIServer, prompt: Prompt, networks: demo_model.DemoNetworks
) -> None:
    expected = latents(server, prompt)
    made_for = networks.model.model
    lora = models.lora_for(made_for.model_config.unet_config, made_for.diffusion_model)
    save_file(lora, server.base / "models" / "loras" / "for_the_demo.safetensors")
    graph = Graph(server, {**prompt})
    node = number_of(prompt, "DreamCacheDemoModel")
    with_lora = graph.add("LoraLoader", lora_name="for_the_demo.safetensors", strength_model=1.0, strength_clip=1.0)
    for class_type in ("DreamCacheEncodeReference", "ApplyDreamCache"):
        set_inputs(graph.prompt, class_type, model=with_lora)
    graph.prompt[with_lora[0]]["inputs"] |= {"model": [node, 0], "clip": [node, 1]}
    changed = latents(server, graph.prompt)
    assert changed.isfinite().all()
    assert difference(changed, expected) > 0.01


def test_previews_have_the_colours_of_its_latents_and_no_other_models(
    networks: demo_model.DemoNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.loads(read_tensors(MODEL)[0]["header"])
    for method in (latent_preview.LatentPreviewMethod.Auto, latent_preview.LatentPreviewMethod.TAESD):
        monkeypatch.setattr(latent_preview.args, "preview_method", method)
        previewer = latent_preview.get_previewer(torch.device("cpu"), networks.model.model.latent_format)
        for channel, color in enumerate(header["rgb_factors"]):
            latent = torch.zeros(1, 4, 16, 16)
            latent[:, channel] = 1
            shown = previewer.decode_latent_to_preview(latent).getpixel((8, 8))
            expected = [255 * min(max((value + 1) / 2, 0), 1) for value in color]
            assert shown == pytest.approx(expected, abs=1)
    assert comfy.latent_formats.SD15().latent_rgb_factors != header["rgb_factors"]


def test_its_files_tell_where_they_come_from(networks: demo_model.DemoNetworks) -> None:
    header = json.loads(read_tensors(MODEL)[0]["header"])
    # Its name is what it was at that commit, when it lay elsewhere.
    assert (ROOT / "scripts" / "demo_recipe" / Path(header["recipe"]).name).is_file()
    assert len(bytes.fromhex(header["commit"])) == 20
    assert header["data"] == {vendor: f"{package} ({licence})" for vendor, (package, licence) in PACKAGES.items()}
    *_, training = load_adapter(ADAPTER).adapter.provenance
    assert training.base_hash == weights_of(networks.model).base_hash


@pytest.mark.parametrize("part", ["model", "clip", "vae"])
def test_comfyui_makes_each_part_anew(networks: demo_model.DemoNetworks, part: str) -> None:
    patcher = networks.patchers[part]
    make, arguments = patcher.cached_patcher_init
    anew = make(*arguments, disable_dynamic=True)
    assert anew.model is not patcher.model
    assert not anew.is_dynamic()
    weights = patcher.model.state_dict()
    assert weights.keys() == anew.model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in anew.model.state_dict().items())


@pytest.mark.parametrize("path", [MODEL, ADAPTER], ids=lambda path: path.stem)
@pytest.mark.parametrize("problem", ["is not there", "is damaged"])
def test_without_its_files_it_says_what_to_do(
    path: Path, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "FOLDER", tmp_path)
    for file in {MODEL, ADAPTER} - {path}:
        shutil.copyfile(file, tmp_path / file.name)
    if problem == "is damaged":
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DreamCacheError) as raised:
        demo_model.DreamCacheDemoModel.execute()
    advice = "reinstall the DreamCache nodes, which include the demo model."
    assert str(raised.value) == f"{tmp_path / path.name} {problem}: {advice}"


def test_another_file_in_place_of_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "FOLDER", tmp_path)
    save_file({"unet.weight": torch.zeros(1)}, tmp_path / MODEL.name)
    with pytest.raises(DreamCacheError, match="is damaged: reinstall the DreamCache nodes"):
        demo_model.load_networks()


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    """Subjects that nothing was trained on."""
    monkeypatch.setattr(artwork, "ARTWORK", SUBJECTS)
    return artwork.subjects()


def test_it_draws_subjects_it_was_never_trained_on_where_the_prompt_puts_them(
    networks: demo_model.DemoNetworks, held_out: list[Subject]
) -> None:
    yardstick = Yardstick()
    yardstick.load_state_dict(load_file(SUBJECTS / "yardstick.safetensors"))
    judge = Judge(yardstick)
    studio = Studio(networks)
    adapter = wrap_for_sampling(load_adapter(ADAPTER).adapter)
    # Four of them, each on three backgrounds.
    places = ["on a snowy field", "at sunset", "on a wooden table"]
    of = [Case(subject, place) for subject in held_out[::6] for place in places]
    with_reference = judge.measure(of, studio.draw(of, adapter, image_guidance=IMAGE_GUIDANCE))
    without = judge.measure(of, studio.draw(of))
    assert with_reference.retrieval >= FOUND
    assert with_reference.rank >= without.rank + RANK_GAIN
    assert with_reference.colour <= without.colour - COLOUR_GAIN
    assert with_reference.structure >= without.structure + STRUCTURE_GAIN
    assert with_reference.background >= RIGHT_BACKGROUNDS


def latents(server: ComfyUIServer, prompt: Prompt) -> torch.Tensor:
    """What the sampler of a prompt makes."""
    return Graph(server, {**prompt}).latents([number_of(prompt, "KSampler"), 0])


def number_of(prompt: Prompt, class_type: str) -> str:
    (number,) = (number for number, node in prompt.items() if node["class_type"] == class_type)
    return number
