"""The training command, on a full-size checkpoint with generated weights and small pictures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import environment
import full_size
import pytest
from dreamcache.dreamcache_core import load_adapter, save_sample
from generated_weights import write_models
from PIL import Image
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


def test_the_command_trains_an_adapter_and_goes_on_where_it_stopped(triplets: Path, tmp_path: Path) -> None:
    made = environment.ensure()
    models = full_size.BASE / "models" / "checkpoints" / write_models(full_size.BASE / "models", "SD15", full_size.SEED)

    def train(*arguments: str) -> subprocess.CompletedProcess:
        command = [made.python, "-m", "dreamcache_core.train", "--comfyui", made.comfyui, "--checkpoint", models]
        command += ["--data", triplets, "--output", tmp_path, "--cpu", "--precision", "float32"]
        settings = ["--resolution", "64", "--batch", "2", "--warm-up", "1", "--every", "1", "--workers", "0"]
        return subprocess.run([*command, *settings, *arguments], cwd=ROOT, capture_output=True, text=True)

    first = train("--steps", "1")
    assert "2 triplets in" in first.stdout
    assert "25,207,040 parameters for SD1.x" in first.stdout
    assert "step 1 of 1: loss" in first.stdout
    second = train("--steps", "2")
    assert "Going on after step 1." in second.stdout
    assert "step 2 of 2: loss" in second.stdout
    assert "step 1 of" not in second.stdout

    trained = load_adapter(tmp_path / "adapter.safetensors").adapter
    assert trained.base_model == "SD1.x"
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())

    refused = train("--steps", "2", "--data", str(tmp_path / "nothing"))
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("is not a folder: choose the folder that holds the triplets.")
