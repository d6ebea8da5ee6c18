"""The training command, killed at random moments: it resumes, and ends as if it had never been killed.

`pytest tests/host/test_kills.py --kills 100` kills it that many times.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from random import Random

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, newest_checkpoint
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from support.train_command import Command, save_triplets

STEPS, EVERY = 12, 2


def check_finished(folder: Path, straight: Path) -> None:
    """The last checkpoint, the adapter and the losses are those of a training that was not killed."""
    states = [load_checkpoint(folder), load_checkpoint(straight)]
    assert [state["step"] for state in states if state] == [STEPS, STEPS]
    ours, expected = (state["adapter"] for state in states if state)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    adapters = [load_adapter(TrainingFolder(each).adapter_path).adapter for each in (folder, straight)]
    assert adapters[0].provenance == adapters[1].provenance
    assert adapters[0].provenance[0].steps == STEPS
    weights = adapters[0].state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in adapters[1].state_dict().items())
    assert TrainingFolder(folder).losses() == TrainingFolder(straight).losses()
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in straight.iterdir())


def test_the_command_resumes_from_any_kill_and_ends_with_the_adapter_of_the_last_step(
    short_models: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = ["--steps", str(STEPS), "--every", str(EVERY)]
    triplets, straight = save_triplets(tmp_path / "triplets"), tmp_path / "straight"
    began = time.monotonic()
    command = Command(short_models[0], triplets, straight)
    assert not command.run(*settings).returncode
    longest = time.monotonic() - began

    random, killed, folders = Random(1), 0, 0
    while killed < request.config.getoption("--kills"):
        folders += 1
        folder = tmp_path / f"killed{folders}"
        command = Command(short_models[0], triplets, folder)
        while killed < request.config.getoption("--kills"):
            before, taken = newest_checkpoint(folder), len(TrainingFolder(folder).losses())
            process = command.start(*settings)
            # Half of the kills hit the training itself: it takes long to begin.
            if random.randrange(2):
                while newest_checkpoint(folder) == before and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(random.expovariate(1))
            else:
                time.sleep(random.uniform(0, longest))
            finished = process.poll() is not None
            process.kill()
            said, errors = process.communicate()
            assert not finished or not process.returncode, errors
            killed += not finished
            if resumed := re.search(r"^Resuming after step (\d+)\.$", said, re.MULTILINE):
                assert before and before.stem == f"step_{int(resumed[1]):09}"
                assert taken - int(resumed[1]) <= EVERY
            if finished:
                break
        finish = command.run(*settings)
        assert not finish.returncode, finish.stderr
        check_finished(folder, straight)
