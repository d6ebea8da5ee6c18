"""Evaluation by the papers' protocol: from a data set of subjects to pictures and a table of scores."""

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
from dreamcache.dreamcache_core.evaluation.generated_images import plan_images
from dreamcache.dreamcache_core.evaluation.measurement import measure_images
from dreamcache.dreamcache_core.evaluation.metrics import MetricNetworks, SubjectMetrics
from dreamcache.dreamcache_core.evaluation.results import save_evaluation
from dreamcache.dreamcache_core.evaluation.subjects import load_masked_image, open_subjects
from dreamcache.dreamcache_core.generation import GenerationSettings
from dreamcache.nodes.host import encoders
from dreamcache.nodes.host.evaluate_command import draw_all
from dreamcache.nodes.host.generation import generate_samples
from dreamcache.nodes.host.patching.injection import wrap_for_sampling
from PIL import Image
from support.graph import adapter_file
from support.miniature import models
from support.small_networks import new_dino, write
from support.subjects import write_subjects

SETTINGS = GenerationSettings(steps=2, resolution=64)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_subjects(tmp_path / "dataset")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> MetricNetworks:
    dino = encoders.load_dino(write(new_dino(), tmp_path_factory.mktemp("networks") / "dino.safetensors"))
    clip = encoders.clip_image_encoder(models.clip_vision("sd15"))
    return MetricNetworks(dino, clip, encoders.ClipTextEncoder(models.clip("sd15"), clip))


def test_the_whole_protocol_goes_from_a_dataset_to_a_table(
    server, dataset: Path, networks: MetricNetworks, tmp_path: Path
) -> None:
    subjects, folder = open_subjects(dataset), tmp_path / "drawn"
    adapter = load_adapter(server.base / "models" / "dreamcache" / adapter_file(server, "sd15")).adapter
    mini = models.unet_patcher("sd15"), models.clip("sd15"), models.vae(), wrap_for_sampling(adapter)
    generation = SETTINGS, partial(generate_samples, *mini)
    images = plan_images(subjects, 2, folder, {"steps": 2})
    assert len(images) == 2 * 2 * 2
    for _ in zip(range(3), draw_all(images, subjects, folder, *generation), strict=False):
        pass  # Stopped in the midst of it,
    images = plan_images(subjects, 2, folder, {"steps": 2})
    assert len(images) == 8 - 3  # it goes on where it stopped.
    assert list(draw_all(images, subjects, folder, *generation)) == images
    assert not plan_images(subjects, 2, folder, {"steps": 2})
    with pytest.raises(DreamCacheError, match="generated with a different steps: choose another folder"):
        plan_images(subjects, 2, folder, {"steps": 3})
    others = [replace(subject, prompts=subject.prompts[::-1]) for subject in subjects]
    with pytest.raises(DreamCacheError, match="was generated from a different prompt"):
        plan_images(others, 2, folder, {"steps": 2})

    heard = []
    evaluation = measure_images(folder, subjects, networks, on_progress=lambda *done: heard.append(done))
    assert heard[-1] == (8, 8)
    save_evaluation(evaluation, folder, tmp_path / "results")
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert results["settings"] == {"steps": 2}
    assert results["yardsticks"].keys() == {"DINO", "CLIP-I", "CLIP-T"}
    cup, dog = results["subjects"]
    assert (cup["name"], cup["class"], cup["references"]) == ("coffee_cup", "coffee cup", ["00.jpg", "01.jpg"])
    assert [len(subject["drawings"]) for subject in (cup, dog)] == [4, 4]
    # The scores of one picture are those that it measures alone.
    told = dog["drawings"][1]
    assert (told["file"], told["prompt"], told["seed"]) == ("dog2/01_0.png", "a red dog", 0)
    references = [load_masked_image(path) for path in subjects[1].references]
    measured = SubjectMetrics(networks, references).measure(
        load_masked_image(folder / "dog2" / "01_0.png"), "a red dog"
    )
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
    dataset: Path, networks: MetricNetworks, tmp_path: Path
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
        mask = load_masked_image(dataset / "dog2" / "00.jpg").mask
        assert mask is not None
        return mask

    evaluation = measure_images(folder, open_subjects(dataset), networks, find_mask)
    assert asked == [(200, 200, 3)]
    assert evaluation.missing == ("coffee_cup",)
    assert {name: score for name, score in evaluation.mean.items() if name != "CLIP-T"} == pytest.approx(
        {"DINO": 1, "CLIP-I": 1, "DINO masked": 1, "CLIP-I masked": 1}
    )


def test_manifests_that_tell_of_no_pictures_are_refused_in_a_sentence(
    dataset: Path, networks: MetricNetworks, tmp_path: Path
) -> None:
    subjects, manifest = open_subjects(dataset), tmp_path / "manifest.jsonl"

    def refusal() -> str:
        with pytest.raises(DreamCacheError) as raised:
            measure_images(tmp_path, subjects, networks)
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
