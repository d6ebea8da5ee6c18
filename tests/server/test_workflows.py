"""The shipped workflows, run as they are but for the size of the pictures and the models, which are miniatures here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.training.triplets import open_triplets
from harness.comfyui_server import ComfyUIServer, Prompt
from harness.workflow_prompt import FOLDER, PHOTOGRAPH, WORKFLOWS, load_prompt, set_inputs, without_reference
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from support.graph import adapter_file
from support.miniature import models

EARLIER = sorted((Path(__file__).resolve().parents[1] / "support" / "earlier_workflows").glob("*.json"))
"""As earlier versions of the pack shipped them."""
TRIPLETS, TRAINING, SAVING, COMPARING = (
    WORKFLOWS[f"dreamcache_{name}"] for name in ("make_triplets", "train_adapter", "save_reference", "compare")
)
DEMOS = [path for name, path in WORKFLOWS.items() if name.startswith("dreamcache_demo_")]
"""They run as they are (test_demo_templates.py)."""
# Class of a node that loads a file → the node that makes a miniature of what it loads.
MINIATURES = {"CheckpointLoaderSimple": "MiniatureModel", "ControlNetLoader": "MiniatureControlNet"}


@pytest.fixture(scope="module")
def painted(server: ComfyUIServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture whose subject is painted over in the mask editor, which makes it transparent there."""
    image = Image.open(PHOTOGRAPH).convert("RGBA")
    opacity = Image.new("L", image.size, 255)
    ImageDraw.Draw(opacity).ellipse((80, 15, 480, 390), fill=0)
    image.putalpha(opacity)
    path = tmp_path_factory.mktemp("input") / "painted.png"
    image.save(path)
    return server.upload_image(path)


@pytest.fixture(scope="module")
def saved(server: ComfyUIServer, painted: str) -> str:
    """The reference that the workflow for one saves, which another loads."""
    folder = server.base / "models" / "dreamcache_references"
    before = set(folder.glob("my_subject_*"))
    shown = server.run(prompt_of(server, SAVING, painted)).images
    assert len(shown) == 2
    (path,) = set(folder.glob("my_subject_*")) - before
    return path.name


def prompt_of(server: ComfyUIServer, path: Path, image: str) -> Prompt:
    prompt = load_prompt(path, server.object_info())
    for node in prompt.values():
        if node["class_type"] in MINIATURES:
            node |= {"class_type": MINIATURES[node["class_type"]], "inputs": {"structure": "sd15", "seed": models.SEED}}
    for node in prompt.values():
        if node["class_type"] == "LoadBackgroundRemovalModel":
            node |= {"class_type": "MiniatureBackgroundRemoval", "inputs": {}}
    save_file(models.lora("sd15"), server.base / "models" / "loras" / "miniature.safetensors")
    set_inputs(prompt, "LoraLoader", lora_name="miniature.safetensors")
    set_inputs(prompt, "DreamCacheAdapterLoader", adapter_name=adapter_file(server, "sd15"))
    set_inputs(prompt, "LoadImage", image=image)
    set_inputs(prompt, "DreamCacheEncodeReference", resolution=128)
    set_inputs(prompt, "EmptyLatentImage", width=192, height=128)
    set_inputs(prompt, "ImageScale", width=192, height=128)
    set_inputs(prompt, "KSampler", seed=5, steps=2)
    set_inputs(prompt, "DreamCachePreviewAttention", noise_levels=1)
    set_inputs(prompt, "DreamCacheCompare", image_guidance="1", steps="1", seed="5")
    return prompt


@pytest.mark.parametrize(
    "path",
    [*(path for path in WORKFLOWS.values() if path not in (TRIPLETS, TRAINING, SAVING, COMPARING, *DEMOS)), *EARLIER],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_a_shipped_workflow_draws_a_picture_that_depends_on_the_reference(
    server: ComfyUIServer, painted: str, saved: str, path: Path, tmp_path: Path
) -> None:
    def draw(prompt: Prompt, name: str) -> Image.Image:
        set_inputs(prompt, "DreamCacheLoadReferenceCache", reference_name=saved)
        (image,) = (image for image in server.run(prompt).images if image["type"] == "output")
        return Image.open(server.download(image, tmp_path / name))

    personalised = draw(prompt_of(server, path, painted), "personalised.png")
    plain = draw(without_reference(prompt_of(server, path, painted)), "plain.png")
    assert personalised.size == plain.size == (192, 128)
    assert personalised.tobytes() != plain.tobytes()


def test_the_workflow_that_compares_draws_every_combination(
    server: ComfyUIServer, painted: str, tmp_path: Path
) -> None:
    (image,) = server.run(prompt_of(server, COMPARING, painted)).images
    sheet = Image.open(server.download(image, tmp_path / "sheet.png"))
    # With strengths of 0, 0.5 and 1.
    assert sheet.width == 8 + 3 * 264


def test_the_workflow_for_triplets_makes_one_at_each_run(server: ComfyUIServer, painted: str) -> None:
    prompt = prompt_of(server, TRIPLETS, painted)
    for seed in range(2):
        set_inputs(prompt, "DreamCachePromptSource", seed=seed)
        server.run(prompt)
    triplets = open_triplets(server.base / "output" / "dreamcache_triplets" / "my_subjects").check()
    assert triplets.problems == ()
    first, second = (triplets.load(index, 128, seed=1, epoch=0) for index in range(2))
    assert first.prompt != second.prompt
    assert not torch.equal(first.target, second.target)


def test_the_workflow_for_training_trains_on_the_triplets_of_the_other(server: ComfyUIServer, painted: str) -> None:
    prompt = prompt_of(server, TRIPLETS, painted)
    set_inputs(prompt, "DreamCachePromptSource", seed=2)
    server.run(prompt)
    prompt = prompt_of(server, TRAINING, painted)
    set_inputs(prompt, "DreamCacheTrainAdapter", steps=2, resolution=64, precision="float32")
    assert len(server.run(prompt).images) == 2
    (training,) = load_adapter(
        server.base / "models" / "dreamcache" / "my_adapter_00001_.safetensors"
    ).adapter.provenance
    assert training.steps == 2


def test_every_workflow_has_a_thumbnail_for_the_template_browser() -> None:
    assert set(WORKFLOWS.values()) == set(FOLDER.glob("*.json"))
    for path in WORKFLOWS.values():
        picture = path.with_suffix(".jpg")
        width, height = Image.open(picture).size
        assert width == height <= 512
        assert picture.stat().st_size <= 40_000
