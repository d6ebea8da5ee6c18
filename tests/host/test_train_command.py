"""The training command, on a checkpoint with generated weights and small pictures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, newest_checkpoint
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
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
    for changes in (["--batch", "4"], ["--data", str(tmp_path / "others")]):
        save_triplet(tmp_path / "others", {"generation": sheet, "mask": Image.new("L", sheet.size, 255)}, "a cup")
        refused = train("--steps", "3", *changes)
        assert refused.returncode == 1
        sentence = (
            rf'The training "{tmp_path.name}" was started with (batch 2|folder {triplets}), but now it is .*: set it'
        )
        assert re.search(sentence, refused.stderr), refused.stderr
    assert [file for file in files() if not file.startswith("others")] == before


@pytest.mark.parametrize("number", [signal.SIGINT], ids=lambda number: number.name)
def test_the_command_stops_after_a_step_and_resumes_to_the_bit(
    short_models: tuple[Path, Path], triplets: Path, tmp_path: Path, number: signal.Signals
) -> None:
    checkpoint, _ = short_models
    settings = ["--steps", "6", "--every", "100", "--workers", "1"]
    straight = Command(checkpoint, triplets, tmp_path / "straight").run(*settings)
    assert straight.returncode == 0, straight.stderr
    stopped = Command(checkpoint, triplets, tmp_path / "stopped")
    process = stopped.start(*settings)
    while not TrainingFolder(tmp_path / "stopped").losses():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 1
    (step,) = map(int, re.findall(r"^Stopped after step (\d): the same command resumes there\.$", errors, re.MULTILINE))
    assert 1 <= step < 6
    assert newest_checkpoint(tmp_path / "stopped") == tmp_path / "stopped" / f"step_{step:09}.checkpoint"
    assert load_adapter(tmp_path / "stopped" / "adapter.safetensors").adapter.provenance[0].steps == step

    assert f"Resuming after step {step}." in stopped.run(*settings).stdout
    states = [load_checkpoint(tmp_path / folder) for folder in ("straight", "stopped")]
    expected, adapter = (state["adapter"] for state in states if state)
    assert all(torch.equal(adapter[name], tensor) for name, tensor in expected.items())
    assert TrainingFolder(tmp_path / "stopped").losses() == TrainingFolder(tmp_path / "straight").losses()


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
