"""Training sessions: however one ends, no step is lost, and it resumes to the same bits."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.figures.loss_curve import plot_loss_curve
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from dreamcache.dreamcache_core.training.loss import Batch
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.trainer import Progress, Trainer
from PIL import Image
from support.disks import disk
from support.trainings import (
    ORIGIN,
    SETTINGS,
    base_of,
    batch,
    batches,
    new_trainer,
    open_session,
    train_to_the_end,
    weights,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[float]]:
    """A training that ran to its end, and its losses."""
    trainer = new_trainer()
    session = open_session(trainer, tmp_path_factory.mktemp("straight"), 100)
    losses = [progress.loss for progress in session.run(batches())]
    assert len(losses) == SETTINGS.steps
    return trainer, losses


def assert_same(trainer: Trainer, other: Trainer) -> None:
    assert torch.equal(weights(trainer), weights(other))
    assert torch.equal(flatten(trainer.averaged_adapter()), flatten(other.averaged_adapter()))


def flatten(adapter: Adapter) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in adapter.parameters()])


def saved_weights(folder: Path) -> torch.Tensor:
    return flatten(load_adapter(folder / "adapter.safetensors").adapter)


def test_training_that_was_killed_resumes_to_the_bit(straight: tuple[Trainer, list[float]], tmp_path: Path) -> None:
    trainer, losses = straight
    killed = open_session(new_trainer(), tmp_path / "killed", 2)
    for progress in killed.run(batches()):
        if progress.step == 5:  # The newest checkpoint is that of step 4.
            shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    resumed = new_trainer()
    session = open_session(resumed, tmp_path / "copy", 2)
    assert session.step == 4
    assert session.losses == pytest.approx(losses[:4], rel=1e-5)
    assert [progress.loss for progress in session.run(batches(4))] == losses[4:]
    assert_same(resumed, trainer)
    assert TrainingFolder(tmp_path / "copy").losses() == pytest.approx(losses, rel=1e-5)


class Cancelled(BaseException):
    """Like ComfyUI's InterruptProcessingException."""


def cancel(*_: object) -> Any:
    raise Cancelled


class Canceller:
    """A listener that stops the session after step 3, as a progress bar does when the run is cancelled."""

    def on_step(self, progress: Progress) -> None:
        if progress.step == 3:
            raise Cancelled

    def on_samples(self, sheet: Image.Image, path: Path, step: int) -> None: ...

    def on_validation(self, validations: object) -> None: ...

    def on_end(self) -> None: ...


@pytest.mark.parametrize("stopped_by", ["closing it", "a listener", "samples", "the base model", "Ctrl+C"])
def test_training_that_is_stopped_between_two_steps_loses_none(
    straight: tuple[Trainer, list[float]], tmp_path: Path, stopped_by: str
) -> None:
    def until_ctrl_c() -> Iterator[list[Batch]]:
        yield from batches(0, 3)
        raise KeyboardInterrupt

    stopped = new_trainer()
    samples = {"sample_every": 3, "generate_samples": cancel} if stopped_by == "samples" else {}
    session = open_session(stopped, tmp_path, 100, **samples)
    if stopped_by == "the base model":
        base = base_of(stopped)
        base.cache = lambda *latents: cancel() if stopped.step == 3 else type(base).cache(base, *latents)
    steps = session.run(
        until_ctrl_c() if stopped_by == "Ctrl+C" else batches(), [Canceller()] if stopped_by == "a listener" else ()
    )
    if stopped_by == "closing it":
        while session.step < 3:
            next(steps)
        steps.close()
    else:
        with pytest.raises((Cancelled, KeyboardInterrupt)):
            list(steps)

    resumed = new_trainer()
    session = open_session(resumed, tmp_path, 100)
    assert (session.step, len(session.losses)) == (3, 3)
    list(session.run(batches(3)))
    assert_same(resumed, straight[0])


def test_a_step_that_was_cut_short_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights belong to no step."""
    steps = open_session(new_trainer(), tmp_path, 1).run(batches())
    next(steps)

    def cut_short(*_: object) -> None:
        raise KeyboardInterrupt

    # Between the optimiser and the averages.
    monkeypatch.setattr(torch, "_foreach_lerp_", cut_short)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000000001.checkpoint"


def test_training_that_is_killed_at_any_moment_ends_as_if_it_were_not(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train_to_the_end(straight)
    random = Random(1)
    script = f"import conftest, pathlib, trainings; trainings.train_to_the_end(pathlib.Path({str(killed)!r}))"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent)
        before = newest_checkpoint(killed)
        while newest_checkpoint(killed) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.wait()
    train_to_the_end(killed)

    states = [load_checkpoint(folder) for folder in (straight, killed)]
    assert [state["step"] for state in states if state] == [12, 12]
    expected, adapter = (state["adapter"] for state in states if state)
    assert all(torch.equal(adapter[name], tensor) for name, tensor in expected.items())
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in straight.iterdir())
    assert (killed / "losses.txt").read_bytes() == (straight / "losses.txt").read_bytes()
    assert torch.equal(saved_weights(killed), saved_weights(straight))


@pytest.mark.parametrize("file", ["missing", "older"])
def test_the_adapter_is_that_of_the_last_step_though_the_process_was_killed_before_it(
    tmp_path: Path, file: str
) -> None:
    trainer = new_trainer()
    for progress in open_session(trainer, tmp_path, 2, write_adapter=True).run(batches()):
        if progress.step == 4:
            older = (tmp_path / "adapter.safetensors").read_bytes()
    path = tmp_path / "adapter.safetensors"
    newest = saved_weights(tmp_path)
    assert torch.equal(newest, flatten(trainer.averaged_adapter()))
    if file == "older":
        path.write_bytes(older)
        assert not torch.equal(saved_weights(tmp_path), newest)
    else:
        path.unlink()
    assert not list(open_session(new_trainer(), tmp_path, 2, write_adapter=True).run(batches(6)))
    assert torch.equal(saved_weights(tmp_path), newest)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"base_hash": "1" * 64}, "model 000000000000, but now it is 111111111111"),
        ({"adapter": "1" * 12}, "adapter untrained, but now it is 111111111111"),
        ({"folder": "others"}, "folder pictures, but now it is others"),
        ({"batch": 8}, "batch 4, but now it is 8"),
        ({"resolution": 128}, "resolution 64, but now it is 128"),
        ({"seed": 4}, "seed 3, but now it is 4"),
        ({"held_out": 8}, "held_out 0, but now it is 8"),
    ],
)
def test_training_does_not_resume_with_another_origin(tmp_path: Path, change: dict[str, Any], difference: str) -> None:
    folder = tmp_path / "mine"
    steps = open_session(new_trainer(), folder, 1).run(batches())
    next(steps)
    steps.close()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DreamCacheError) as raised:
        open_session(new_trainer(), folder, 1, replace(ORIGIN, **change))
    advice = "set it back to resume, or choose a new name to start over."
    assert str(raised.value) == f'The training "mine" was started with {difference}: {advice}'
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_another_origin_is_no_problem_before_the_first_checkpoint(tmp_path: Path) -> None:
    open_session(new_trainer(), tmp_path, 1)
    assert open_session(new_trainer(), tmp_path, 1, replace(ORIGIN, seed=4)).step == 0


@pytest.mark.parametrize("made_by", ["node", "command"])
def test_folders_of_earlier_versions_resume_to_the_bit(
    straight: tuple[Trainer, list[float]], tmp_path: Path, made_by: str
) -> None:
    trainer, losses = straight
    earlier = new_trainer()
    for micro_batches in batches(0, 4):
        earlier.train(micro_batches)
        if earlier.step >= 3:
            save_checkpoint(tmp_path, earlier.state())
    (tmp_path / "step_000000005.partial").write_bytes(b"killed while writing")
    if made_by == "node":
        begun_with = {"model": "0" * 12, "adapter": "untrained", "folder": "pictures"}
        (tmp_path / "begun_with.json").write_text(json.dumps({**begun_with, "batch": 4, "resolution": 64, "seed": 3}))
        # It was killed after step 5.
        (tmp_path / "losses.txt").write_text("".join(f"{loss:.6g}\n" for loss in losses[:5]))
        for change, problem in (({"seed": 4}, "seed 3, but now it is 4"), ({"held_out": 8}, "held_out 0, but now")):
            with pytest.raises(DreamCacheError, match=f"started with {problem}"):
                open_session(new_trainer(), tmp_path, 2, replace(ORIGIN, **change))

    resumed = new_trainer()
    session = open_session(resumed, tmp_path, 2)
    assert session.step == 4
    list(session.run(batches(4)))
    assert_same(resumed, trainer)
    known = losses if made_by == "node" else [math.nan] * 4 + losses[4:]
    assert TrainingFolder(tmp_path).losses() == pytest.approx(known, rel=1e-5, nan_ok=True)
    assert len(plot_loss_curve(session.losses, SETTINGS.steps).getcolors() or []) > 2
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(DreamCacheError, match="started with batch 4, but now it is 8"):
        open_session(new_trainer(), tmp_path, 2, replace(ORIGIN, batch=8))


def break_one_picture(trainer: Trainer, bad: Batch) -> None:
    bad.targets[2] = math.nan


def break_the_schedule(trainer: Trainer, bad: Batch) -> None:
    trainer.base.sigmas.fill_(math.inf)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_one_picture, "loss of step 3 is not a number with cup/3: the VAE overflows"),
        (break_the_schedule, "loss of step 3 is not a number with cup/1, cup/2, cup/3, cup/4: resume from the last"),
    ],
)
def test_a_loss_that_is_no_number_names_its_triplets_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Trainer, Batch], None], sentence: str
) -> None:
    trainer = new_trainer()
    bad = replace(batch(2), names=["cup/1", "cup/2", "cup/3", "cup/4"])
    steps = open_session(trainer, tmp_path, 2).run([[batch(0)], [batch(1)], [bad]])
    next(steps), next(steps)
    before = weights(trainer)
    damage(trainer, bad)
    with pytest.raises(DreamCacheError, match=sentence):
        next(steps)
    assert torch.equal(weights(trainer), before)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000000002.checkpoint"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    with disk(tmp_path) as mounted:
        yield mounted


def test_a_full_disk_is_reported_and_the_last_checkpoint_is_whole(small_disk: Path) -> None:
    save_checkpoint(small_disk, {"step": 1, "tensor": torch.zeros(100_000)})
    with pytest.raises(DreamCacheError, match=r"disk of .* is full, .* resume from step_000000001.checkpoint"):
        save_checkpoint(small_disk, {"step": 2, "tensor": torch.zeros(400_000)})
    state = load_checkpoint(small_disk)
    assert state
    assert state["step"] == 1
    with pytest.raises(DreamCacheError, match=r"has 1 MB left, but training needs 12 MB"):
        open_session(new_trainer(), small_disk, 1)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DreamCacheError, match=r"file.* could not be read or written: .*, then start the"):
        open_session(new_trainer(), tmp_path / "file" / "training", 1)
