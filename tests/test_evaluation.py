"""Evaluation by the papers' protocol: subjects on disk, what is drawn of them, and what is told of that."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluate import draw_all
from dreamcache.dreamcache_core.evaluation.metrics import SubjectMeasure, Yardsticks
from dreamcache.dreamcache_core.evaluation.results import measure_drawings, plan_drawings, save_evaluation
from dreamcache.dreamcache_core.evaluation.subjects import load_picture, open_subjects
from dreamcache.nodes.host import encoders
from dreamcache.nodes.host.generation import SampleSettings, draw_samples
from dreamcache.nodes.host.patching.injection import wrap_for_sampling
from graph import adapter_file
from miniature import models
from PIL import Image
from small_networks import new_dino, write
from workflow_prompt import PHOTOGRAPH

SETTINGS = SampleSettings(steps=2, resolution=64)

DREAMBOOTH = """Classes

subject_name,class
bear_plushie,stuffed animal
dog2,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two subjects of two pictures each, of which one's first has a mask."""
    folder = tmp_path / "dataset"
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    for number, name in enumerate(("coffee_cup", "dog2")):
        (folder / name).mkdir(parents=True)
        for picture in (0, 1):
            left = 100 * (2 * number + picture)
            photograph.crop((left, 50, left + 200, 250)).save(folder / name / f"{picture:02}.jpg")
    mask = Image.new("L", (200, 200), 0)
    mask.paste(255, (50, 50, 150, 150))
    mask.save(folder / "dog2" / "00_mask.png")
    (folder / "prompts.txt").write_text("a {} in the jungle\n\na red {}\n", encoding="utf-8")
    return folder


def test_subjects_are_folders_of_pictures_with_prompts_and_a_class(dataset: Path) -> None:
    cup, dog = open_subjects(dataset)
    assert (cup.name, cup.class_name, cup.prompts) == (
        "coffee_cup",
        "coffee cup",
        ("a coffee cup in the jungle", "a red coffee cup"),
    )
    assert (dog.class_name, [path.name for path in dog.references]) == ("dog", ["00.jpg", "01.jpg"])
    first, second = map(load_picture, dog.references)
    assert first.mask is not None
    assert (first.mask.shape, first.mask.mean()) == ((200, 200), 0.25)
    assert second.mask is None

    (dataset / "coffee_cup" / "class.txt").write_text("mug\n")
    (dataset / "coffee_cup" / "prompts.txt").write_text("a {} on a {} rack")
    cup, dog = open_subjects(dataset)
    assert cup.prompts == ("a mug on a mug rack",)
    assert dog.prompts[0] == "a dog in the jungle"


def test_dreambooths_own_dataset_is_read(dataset: Path) -> None:
    (dataset / "prompts.txt").unlink()
    (dataset / "coffee_cup").rename(dataset / "bear_plushie")
    (dataset / "prompts_and_classes.txt").write_text(DREAMBOOTH)
    bear, dog = open_subjects(dataset)
    assert (bear.class_name, dog.class_name) == ("stuffed animal", "dog")
    assert bear.prompts == ("a stuffed animal in the snow", "a red stuffed animal")
    assert dog.prompts == ("a dog wearing a red hat",)


def test_datasets_that_are_none_are_refused_in_a_sentence(dataset: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(DreamCacheError) as raised:
            open_subjects(dataset)
        return str(raised.value).replace(str(tmp_path), "…")

    (dataset / "empty").mkdir()
    assert refusal() == "…/dataset/empty contains no images: add some, or remove the folder."
    (dataset / "empty").rmdir()
    (dataset / "prompts.txt").write_text("a dog in the jungle")
    assert refusal() == (
        '…/dataset/prompts.txt has a prompt without {} in place of the subject: "a dog in the jungle".'
    )
    (dataset / "prompts.txt").unlink()
    assert refusal() == (
        "There are no prompts for coffee_cup: write some into …/dataset/prompts.txt, one per line, with {} in "
        "place of the subject."
    )
    shutil.rmtree(dataset / "coffee_cup")
    shutil.rmtree(dataset / "dog2")
    assert refusal() == "There are no subjects in …/dataset: add a folder of images for each subject."


@pytest.fixture(scope="module")
def yardsticks(tmp_path_factory: pytest.TempPathFactory) -> Yardsticks:
    dino = encoders.load_dino(write(new_dino(), tmp_path_factory.mktemp("networks") / "dino.safetensors"))
    clip = encoders.clip_images(models.clip_vision("sd15"))
    return Yardsticks(dino, clip, encoders.TextEncoder(models.clip("sd15"), clip))


def test_the_whole_protocol_goes_from_a_dataset_to_a_table(
    server, dataset: Path, yardsticks: Yardsticks, tmp_path: Path
) -> None:
    subjects, folder = open_subjects(dataset), tmp_path / "drawn"
    adapter = load_adapter(server.base / "models" / "dreamcache" / adapter_file(server, "sd15")).adapter
    mini = models.unet_patcher("sd15"), models.clip("sd15"), models.vae(), wrap_for_sampling(adapter)
    drawing_by = SETTINGS, partial(draw_samples, *mini)
    drawings = plan_drawings(subjects, 2, folder, {"steps": 2})
    assert len(drawings) == 2 * 2 * 2
    for _ in zip(range(3), draw_all(drawings, subjects, folder, *drawing_by), strict=False):
        pass  # Stopped in the midst of it,
    drawings = plan_drawings(subjects, 2, folder, {"steps": 2})
    assert len(drawings) == 8 - 3  # it goes on where it stopped.
    assert list(draw_all(drawings, subjects, folder, *drawing_by)) == drawings
    assert not plan_drawings(subjects, 2, folder, {"steps": 2})
    with pytest.raises(DreamCacheError, match="generated with a different steps: choose another folder"):
        plan_drawings(subjects, 2, folder, {"steps": 3})
    others = [replace(subject, prompts=subject.prompts[::-1]) for subject in subjects]
    with pytest.raises(DreamCacheError, match="was generated from a different prompt than the subject has now"):
        plan_drawings(others, 2, folder, {"steps": 2})

    heard = []
    evaluation = measure_drawings(folder, subjects, yardsticks, on_progress=lambda *done: heard.append(done))
    assert heard[-1] == (8, 8)
    save_evaluation(evaluation, folder, tmp_path / "results")
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert results["settings"] == {"steps": 2}
    assert results["yardsticks"].keys() == {"DINO", "CLIP-I", "CLIP-T"}
    cup, dog = results["subjects"]
    assert (cup["name"], cup["class"], cup["references"]) == ("coffee_cup", "coffee cup", ["00.jpg", "01.jpg"])
    assert [len(subject["drawings"]) for subject in (cup, dog)] == [4, 4]
    # What is told of one picture is what it measures.
    told = dog["drawings"][1]
    assert (told["file"], told["prompt"], told["seed"]) == ("dog2/01_0.png", "a red dog", 0)
    references = [load_picture(path) for path in subjects[1].references]
    measured = SubjectMeasure(yardsticks, references).measure(load_picture(folder / "dog2" / "01_0.png"), "a red dog")
    assert told["scores"] == pytest.approx(measured, abs=1e-5)
    for metric in ("DINO", "CLIP-I", "CLIP-T"):
        means = [subject["mean"][metric] for subject in (cup, dog)]
        assert dog["mean"][metric] == pytest.approx(sum(one["scores"][metric] for one in dog["drawings"]) / 4)
        assert results["mean"][metric] == pytest.approx(sum(means) / 2)
    table = (tmp_path / "results" / "results.md").read_text(encoding="utf-8").splitlines()
    assert table[0] == "| subject | pictures | DINO | CLIP-I | CLIP-T |"
    assert table[4].startswith(f"| **mean** | 8 | {results['mean']['DINO']:.3f} | ")
    sheet = Image.open(tmp_path / "results" / "contact_sheet.jpg")
    assert sheet.width > 3 * 192
    assert sheet.height > 2 * 192


def test_pictures_made_elsewhere_are_measured_and_masks_are_found_where_there_are_none(
    dataset: Path, yardsticks: Yardsticks, tmp_path: Path
) -> None:
    """The subject's own pictures, so that one knows the scores."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    subjects = open_subjects(dataset)
    shutil.copy(subjects[1].references[0], folder / "first.jpg")
    (dataset / "dog2" / "01.jpg").unlink()
    line = {"file": "first.jpg", "subject": "dog2", "prompt": "a dog in the jungle"}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    asked = []

    def find_mask(image: torch.Tensor) -> torch.Tensor:
        asked.append(image.shape)
        mask = load_picture(dataset / "dog2" / "00.jpg").mask
        assert mask is not None
        return mask

    evaluation = measure_drawings(folder, open_subjects(dataset), yardsticks, find_mask)
    assert asked == [(200, 200, 3)]
    assert evaluation.missing == ("coffee_cup",)
    assert {name: score for name, score in evaluation.mean.items() if name != "CLIP-T"} == pytest.approx(
        {"DINO": 1, "CLIP-I": 1, "DINO masked": 1, "CLIP-I masked": 1}
    )


def test_manifests_that_tell_of_no_pictures_are_refused_in_a_sentence(
    dataset: Path, yardsticks: Yardsticks, tmp_path: Path
) -> None:
    subjects, manifest = open_subjects(dataset), tmp_path / "manifest.jsonl"

    def refusal() -> str:
        with pytest.raises(DreamCacheError) as raised:
            measure_drawings(tmp_path, subjects, yardsticks)
        return str(raised.value)

    assert "has no manifest.jsonl: generate images into it first" in refusal()
    manifest.write_text("")
    assert refusal().endswith("manifest.jsonl is empty, so there is nothing to score.")
    manifest.write_text('{"file": "one.png"}')
    assert refusal().startswith("Line 1 of ")
    manifest.write_text('{"file": "one.png", "subject": "cat", "prompt": "a cat"}')
    assert "contains images of cat, which is not among the subjects" in refusal()
    manifest.write_text('{"file": "one.png", "subject": "dog2", "prompt": "a dog"}')
    assert "one.png cannot be read" in refusal()
