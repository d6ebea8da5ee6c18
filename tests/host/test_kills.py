"""The training command, stopped by signals or killed at random moments: it resumes, and ends as if it never had been.

`pytest tests/host/test_kills.py --kills 100` kills it that many times.
"""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, newest_checkpoint
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from support.train_command import Command, save_triplets

STEPS, EVERY = 8, 2


@dataclass(frozen=True)
class Straight:
    """A training that nothing stopped. `seconds`: how long it took."""

    folder: Path
    triplets: Path
    seconds: float


@pytest.fixture(scope="module")
def straight(short_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder, triplets = tmp_path_factory.mktemp("straight"), save_triplets(tmp_path_factory.mktemp("triplets"))
    began = time.monotonic()
    trained = Command(short_models[0], triplets, folder).run("--steps", str(STEPS), "--every", str(EVERY))
    assert not trained.returncode, trained.stderr
    return Straight(folder, triplets, time.monotonic() - began)


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


def test_the_command_stops_after_a_step_and_resumes_to_the_bit(
    short_models: tuple[Path, Path], straight: Straight, tmp_path: Path
) -> None:
    """Stopped twice, and between two checkpoints."""
    command = Command(short_models[0], straight.triplets, tmp_path)
    settings = ["--steps", str(STEPS), "--every", "100", "--workers", "1"]
    step = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = command.start(*settings)
        while len(TrainingFolder(tmp_path).losses()) == step:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said, errors = process.communicate()
        assert process.returncode == 1
        assert (f"Resuming after step {step}." in said) == (step > 0)
        (stopped,) = re.findall(r"^Stopped after step (\d): the same command resumes there\.$", errors, re.MULTILINE)
        assert step < int(stopped) < STEPS
        step = int(stopped)
        assert newest_checkpoint(tmp_path) == tmp_path / f"step_{step:09}.checkpoint"
        assert load_adapter(tmp_path / "adapter.safetensors").adapter.provenance[0].steps == step

    assert f"Resuming after step {step}." in command.run(*settings).stdout
    states = [load_checkpoint(folder) for folder in (straight.folder, tmp_path)]
    expected, adapter = (state["adapter"] for state in states if state)
    assert all(torch.equal(adapter[name], tensor) for name, tensor in expected.items())
    assert TrainingFolder(tmp_path).losses() == TrainingFolder(straight.folder).losses()


def test_the_command_resumes_from_any_kill_and_ends_with_the_adapter_of_the_last_step(
    short_models: tuple[Path, Path], straight: Straight, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = ["--steps", str(STEPS), "--every", str(EVERY)]
    random, killed, folders = Random(1), 0, 0
    while killed < request.config.getoption("--kills"):
        folders += 1
        folder = tmp_path / f"killed{folders}"
        command = Command(short_models[0], straight.triplets, folder)
        while killed < request.config.getoption("--kills"):
            before, taken = newest_checkpoint(folder), len(TrainingFolder(folder).losses())
            process = command.start(*settings)
            # Half of the kills hit the training itself: it takes long to begin.
            if random.randrange(2):
                while newest_checkpoint(folder) == before and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(random.expovariate(1))
            else:
                time.sleep(random.uniform(0, straight.seconds))
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
        check_finished(folder, straight.folder)
