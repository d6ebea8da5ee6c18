"""The training command, on a checkpoint with generated weights and small pictures."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import environment
import pytest
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.training.triplet_files import save_sample
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workflow_prompt import PHOTOGRAPH

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triplets")
    picture = Image.open(PHOTOGRAPH)
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (80, 15, 480, 390))
    for prompt in ("a coffee cup", "a cup of coffee on a table"):
        save_sample(folder, {"generation": picture, "mask": mask}, prompt)
    return folder


def test_the_command_trains_an_adapter_and_goes_on_where_it_stopped(
    short_models: tuple[Path, Path], triplets: Path, tmp_path: Path
) -> None:
    made, (checkpoint, _) = environment.ensure(), short_models

    def train(*arguments: str) -> subprocess.CompletedProcess:
        command = [made.python, "-m", "dreamcache_core.train", "--comfyui", made.comfyui, "--checkpoint", checkpoint]
        command += ["--data", triplets, "--output", tmp_path, "--cpu", "--precision", "float32"]
        settings = ["--resolution", "64", "--batch", "2", "--warm-up", "1", "--every", "1", "--workers", "0"]
        return subprocess.run([*command, *settings, *arguments], cwd=ROOT, capture_output=True, text=True)

    def files() -> list[str]:
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())

    estimate = train("--steps", "3", "--dry-run").stdout
    assert "3 steps of 2 are 6 samples, or 3.0 epochs of 2 triplets" in estimate
    assert re.search(r"[1-9]\.\d\d GiB between steps, [1-9]\.\d\d GiB at the peak of a step", estimate)
    assert "disk: 0.27 GiB for checkpoints and the adapter" in estimate
    assert not files()

    first = train("--steps", "1", "--sample-every", "1", "--sample-steps", "1", "--tensorboard")
    assert "2 triplets in" in first.stdout
    layers = "middle_block.1, output_blocks.1.1, output_blocks.3.1"
    assert f"5,536,000 parameters for SD1.x\nlayers: {layers}\n" in first.stdout
    assert "step 1 of 1: loss" in first.stdout
    sheet = Image.open(tmp_path / "samples" / "step_000000001.png")
    assert len(sheet.getcolors(sheet.width * sheet.height) or []) > 100
    (events,) = (tmp_path / "logs").iterdir()
    logged = EventAccumulator(str(events)).Reload()
    assert logged.Tags()["scalars"] == ["loss", "learning rate", "samples per second"]
    assert logged.Tags()["images"] == ["samples"]

    second = train("--steps", "2")
    assert "Going on after step 1." in second.stdout
    assert "step 2 of 2: loss" in second.stdout
    assert "step 1 of" not in second.stdout

    trained = load_adapter(tmp_path / "adapter.safetensors").adapter
    assert trained.base_model == "SD1.x"
    assert [(training.steps, training.batch, training.triplets) for training in trained.provenance] == [(2, 2, 2)]
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())

    refused = train("--steps", "2", "--data", str(tmp_path / "nothing"))
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("is not a folder: choose the folder that contains the triplets.")
