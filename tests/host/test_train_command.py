"""The training command, on a checkpoint with generated weights and small pictures."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from harness import environment
from PIL import Image
from support.train_command import Command, save_triplets
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_triplets(tmp_path_factory.mktemp("triplets"))


def test_the_command_trains_an_adapter_and_resumes(
    short_models: tuple[Path, Path], triplets: Path, tmp_path: Path
) -> None:
    train = Command(short_models[0], triplets, tmp_path).run

    def files() -> list[str]:
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())

    kept = ["--recipe", "smoke", "--held-out", "0", "--cache-latents", str(tmp_path / "latents")]
    estimate = train("--steps", "3", "--dry-run", *kept).stdout
    assert "recipe: smoke, whether everything works, in minutes on a GPU: steps 20, batch 2, resolution 256" in estimate
    assert "3 steps of 2 are 6 samples, or 3.0 epochs of 2 triplets" in estimate
    assert re.search(r"[1-9]\.\d\d GiB between steps, [1-9]\.\d\d GiB at the peak of a step", estimate)
    assert "disk: 0.27 GiB for checkpoints and the adapter, and 0.00 GiB for latents and prompts, of" in estimate
    hours = r"250,000 samples [\d,.]+ h, 1,000,000 samples [\d,.]+ h, 9,600,000 samples [\d,.]+ h"
    assert re.search(rf"time: [\d.]+ samples/s \(measured\), .+ in all; {hours}\n", estimate)
    assert re.search(r"operations: 0\.0\d+ TFLOP for a sample, 0\.0\d+ in later epochs \(counted\)", estimate)
    for card in ("RTX 3060 12 GB (26 TFLOP/s)", "RTX 4090 (165 TFLOP/s)", "H100 SXM (990 TFLOP/s)"):
        assert re.search(rf"  {re.escape(card)}: {hours}$", estimate, re.MULTILINE)
    assert not files()

    first = train("--steps", "1", "--sample-every", "1", "--sample-steps", "1", "--tensorboard")
    assert "2 triplets in" in first.stdout, first.stderr
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
    assert "Resuming after step 1." in second.stdout
    assert "step 2 of 2: loss" in second.stdout
    assert "step 1 of" not in second.stdout

    trained = load_adapter(tmp_path / "adapter.safetensors").adapter
    assert trained.base_model == "SD1.x"
    assert [(training.steps, training.batch, training.triplets) for training in trained.provenance] == [(2, 2, 2)]
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())
    assert len(TrainingFolder(tmp_path).losses()) == 2

    refused = train("--steps", "2", "--data", str(tmp_path / "nothing"))
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("is not a folder: choose the folder that contains the triplets.")
    before = files()
    refused = train("--steps", "3", "--batch", "4")
    assert refused.returncode == 1
    sentence = f'The training "{tmp_path.name}" was started with batch 2, but now it is 4: set it'
    assert sentence in refused.stderr, refused.stderr
    assert files() == before


def test_help_needs_no_comfyui() -> None:
    """And the options come from the only copy of the core in the process."""
    script = (
        "import runpy, sys; sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('dreamcache_core.train', run_name='__main__')\n"
        "finally: print(sorted(name for name in sys.modules if name.startswith(('dreamcache_core', 'comfy'))))"
    )
    command = [environment.ensure().python, "-c", script]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert "--timestep-bias TIMESTEP_BIAS" in shown.stdout
    assert shown.stdout.rstrip().endswith("['dreamcache_core', 'dreamcache_core.launch']"), shown.stdout
