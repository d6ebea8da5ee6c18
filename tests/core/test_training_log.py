"""What a training shows on the console and in TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.log import ConsoleLog, TensorBoardLog
from dreamcache.dreamcache_core.training.trainer import Progress
from dreamcache.dreamcache_core.training.validation import Validation
from PIL import Image


def log_steps(folder: Path, done: int, until: int, loss: float) -> None:
    log = TensorBoardLog(folder / "logs", done)
    for step in range(done + 1, until + 1):
        log.on_step(Progress(step, loss, learning_rate=1e-4, samples_per_second=2.0))
    log.on_samples(Image.new("RGB", (8, 8), "red"), folder, until)
    log.on_validation([Validation(until, right=1.0, other=1.5, none=1.25, error=0.1)])
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
    measured = {name: events.Scalars(f"validation/{name}")[-1] for name in ("gap", "right reference", "no reference")}
    assert {name: (event.step, event.value) for name, event in measured.items()} == {
        "gap": (5, 0.5),
        "right reference": (5, 1.0),
        "no reference": (5, 1.25),
    }


def test_tensorboard_that_is_not_there_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        DreamCacheError, match=r"^TensorBoard is not installed: run pip install tensorboard, or leave out"
    ):
        TensorBoardLog(tmp_path, 0)


def test_the_console_says_the_gap_and_offers_to_stop_when_it_no_longer_grows(capsys: pytest.CaptureFixture) -> None:
    validations = [Validation(step, right=1.0, other=1.5, none=1.25, error=0.1) for step in range(100, 700, 100)]
    offer = "The gap hasn't grown for 5 validations: stop with Ctrl+C"
    ConsoleLog(1000).on_validation(validations[:5])
    shown = capsys.readouterr().out
    assert shown == (
        "validation after step 500: loss 1.0000 with the right reference, 1.5000 with another's, 1.2500 with none; "
        "gap 0.5000 ± 0.1000\n"
    )
    ConsoleLog(1000).on_validation(validations)
    assert offer in capsys.readouterr().out
    ConsoleLog(1000, patience=9).on_validation(validations)
    assert offer not in capsys.readouterr().out
