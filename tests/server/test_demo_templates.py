"""The templates on the demo model, run as they are: no file is needed, and each shows what it is about."""

from __future__ import annotations

from pathlib import Path

import pytest
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.reference.file import load_references
from harness.comfyui_server import ComfyUIServer, Prompt
from harness.workflow_prompt import WORKFLOWS, load_prompt, set_inputs, without_reference
from PIL import Image


def prompt_of(server: ComfyUIServer, name: str) -> Prompt:
    """The template for fewer steps."""
    prompt = load_prompt(WORKFLOWS[f"dreamcache_demo_{name}"], server.object_info())
    set_inputs(prompt, "KSampler", steps=6)
    return prompt


def saved_picture(server: ComfyUIServer, prompt: Prompt, path: Path) -> Image.Image:
    (image,) = (image for image in server.run(prompt).images if image["type"] == "output")
    return Image.open(server.download(image, path)).convert("RGB")


@pytest.mark.parametrize("name", ["attention", "several_references", "strengths", "two_subjects"])
def test_it_draws_a_picture_that_depends_on_the_reference(server: ComfyUIServer, name: str, tmp_path: Path) -> None:
    prompt = prompt_of(server, name)
    personalised = saved_picture(server, prompt, tmp_path / "personalised.png")
    plain = saved_picture(server, without_reference(prompt), tmp_path / "plain.png")
    assert personalised.size == plain.size == ((1024, 512) if name == "two_subjects" else (512, 512))
    assert personalised.tobytes() != plain.tobytes()


def test_each_of_two_subjects_changes_its_own_half_most(server: ComfyUIServer, tmp_path: Path) -> None:
    prompt = prompt_of(server, "two_subjects")
    both = saved_picture(server, prompt, tmp_path / "both.png")
    (encode,) = (node for node in prompt.values() if node["inputs"].get("image", [""])[0] in _inverted(prompt))
    encode["inputs"]["image"] = prompt[encode["inputs"]["image"][0]]["inputs"]["image"]
    twice = saved_picture(server, prompt, tmp_path / "twice.png")
    left, right = (
        sum(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
        for box in ((0, 0, 448, 512), (576, 0, 1024, 512))
        for one, other in [(both.crop(box), twice.crop(box))]
    )
    assert right > 2 * left


def test_a_reference_is_saved_by_one_and_drawn_by_the_other(server: ComfyUIServer, tmp_path: Path) -> None:
    drawing = prompt_of(server, "saved_reference")
    (name,) = (node["inputs"]["reference_name"] for node in drawing.values() if "reference_name" in node["inputs"])
    path = server.base / "models" / "dreamcache_references" / name
    path.unlink(missing_ok=True)  # Tests of the page put an empty one there.
    server.run(prompt_of(server, "save_reference"))
    assert len(load_references(path).references) == 1
    personalised = saved_picture(server, drawing, tmp_path / "personalised.png")
    assert personalised.tobytes() != saved_picture(server, without_reference(drawing), tmp_path / "plain.png").tobytes()


def test_every_combination_is_drawn(server: ComfyUIServer, tmp_path: Path) -> None:
    prompt = prompt_of(server, "compare")
    set_inputs(prompt, "DreamCacheCompare", steps="2")
    (image,) = server.run(prompt).images
    assert min(Image.open(server.download(image, tmp_path / "sheet.png")).size) > 3 * 256


def test_an_adapter_is_trained_on_triplets_of_the_same_run(server: ComfyUIServer) -> None:
    prompt = prompt_of(server, "train_adapter")
    set_inputs(prompt, "DreamCacheTrainAdapter", steps=2)
    server.run(prompt)
    assert len(list((server.base / "output" / "dreamcache_triplets" / "demo").rglob("*_generation.*"))) == 8
    (path,) = (server.base / "models" / "dreamcache").glob("demo_adapter*")
    (training,) = load_adapter(path).adapter.provenance
    assert (training.steps, training.triplets) == (2, 8)


def _inverted(prompt: Prompt) -> list[str]:
    return [number for number, node in prompt.items() if node["class_type"] == "ImageInvert"]
