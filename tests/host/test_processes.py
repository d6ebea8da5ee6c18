"""Several processes, started by Accelerate's launcher, train as one does with the whole batch."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, newest_checkpoint
from dreamcache.dreamcache_core.training.processes import Processes
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from harness import environment
from PIL import Image
from support.miniature import models
from support.train_together import new_adapter, train


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    noise = torch.rand(6, 4, 4, 3, generator=torch.Generator().manual_seed(1)).mul(255).to(torch.uint8).numpy()
    for number, pixels in enumerate(noise):
        picture = Image.fromarray(pixels).resize((64, 64))
        mask = Image.new("L", picture.size, 0)
        mask.paste(255, (8 * number, 8, 64, 56))
        save_triplet(tmp_path / "triplets", {"generation": picture, "mask": mask}, f"picture {number}")
    return tmp_path / "triplets"


def test_two_processes_train_as_one_stop_together_and_resume(triplets: Path, tmp_path: Path) -> None:
    def train_in_two(steps: int, stop: int) -> None:
        # Its own --cpu starts several processes through MPI only.
        launch = [
            environment.ensure().python,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
        ]
        command = [*launch, "-m", "support.train_together", triplets, tmp_path / "two", str(steps), str(stop)]
        subprocess.run(command, cwd=Path(__file__).parents[1], check=True, timeout=300)

    train_in_two(4, stop=2)
    assert newest_checkpoint(tmp_path / "two") == tmp_path / "two" / "step_000000002.checkpoint"
    train_in_two(4, stop=0)
    train(triplets, tmp_path / "one", 4, Processes())
    states = [load_checkpoint(tmp_path / folder) for folder in ("one", "two")]
    assert [state["step"] for state in states if state] == [4, 4]
    one, two = (weights(state["adapter"]) for state in states if state)
    start = weights(new_adapter(models.unet_patcher("sd15")).state_dict())
    # Measured: 7e-5.
    assert (two - one).norm() < 1e-3 * (one - start).norm()


def weights(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])
