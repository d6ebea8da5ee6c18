"""The TensorBoard events of a training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.log import TensorBoardLog
from dreamcache.dreamcache_core.training.trainer import Progress
from PIL import Image


def log_steps(folder: Path, done: int, until: int, loss: float) -> None:
    log = TensorBoardLog(folder / "logs", done)
    for step in range(done + 1, until + 1):
        log.on_step(Progress(step, loss, learning_rate=1e-4, samples_per_second=2.0))
    log.on_samples(Image.new("RGB", (8, 8), "red"), folder, until)
    log.on_end()


def test_tensorboard_draws_one_curve_of_a_training_that_was_stopped(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Killed after step 4, of which no checkpoint was left.
    log_steps(tmp_path, done=0, until=4, loss=2.0)
    log_steps(tmp_path, done=3, until=5, loss=1.0)
    events = accumulators.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2), (2, 2), (3, 2), (4, 1), (5, 1)]
    assert [event.value for event in events.Scalars("samples per second")] == [2.0] * 5
    assert events.Images("samples")[-1].step == 5


def test_tensorboard_that_is_not_there_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        DreamCacheError, match=r"^TensorBoard is not installed: run pip install tensorboard, or leave out"
    ):
        TensorBoardLog(tmp_path, 0)
