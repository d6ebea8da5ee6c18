"""What is written of a training beside its checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.log import TrainingLog
from dreamcache.dreamcache_core.training.session import Progress
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def log_steps(folder: Path, done: int, until: int, loss: float) -> None:
    log = TrainingLog(folder, steps=5, done=done, tensorboard=True)
    for step in range(done + 1, until + 1):
        log.add_step(Progress(step, loss, learning_rate=1e-4, samples_per_second=2.0))
    log.add_sheet(Image.new("RGB", (8, 8), "red"), until)
    log.close()


def test_tensorboard_draws_one_curve_of_a_training_that_was_stopped(tmp_path: Path) -> None:
    # Killed after step 4, of which no checkpoint was left.
    log_steps(tmp_path, done=0, until=4, loss=2.0)
    log_steps(tmp_path, done=3, until=5, loss=1.0)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2), (2, 2), (3, 2), (4, 1), (5, 1)]
    assert [event.value for event in events.Scalars("samples per second")] == [2.0] * 5
    assert events.Images("samples")[-1].step == 5
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step_000000004.png",
        "step_000000005.png",
    ]


def test_tensorboard_that_is_not_there_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        DreamCacheError, match=r"^TensorBoard is not installed: run pip install tensorboard, or leave out"
    ):
        TrainingLog(tmp_path, steps=5, done=0, tensorboard=True)
    TrainingLog(tmp_path, steps=5, done=0, tensorboard=False).close()
