"""Checkpoints and timesteps of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, save_checkpoint
from dreamcache.dreamcache_core.training.loss import sample_noise


def test_noisy_timesteps_are_drawn_more_often_if_they_should_be() -> None:
    uniform, noisy = (sample_noise(range(4000), (1,), 1000, 0, bias)[0] for bias in (0.0, 1.0))
    assert 0 <= noisy.min() < noisy.max() <= 999
    # Of a density that rises as t does, three quarters lie in the upper half, and the rest is drawn as before.
    assert (uniform >= 500).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (noisy >= 500).float().mean() == pytest.approx(0.75, abs=0.03)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        newest = save_checkpoint(tmp_path, {"step": step, "tensor": torch.full((100,), float(step))})
    assert len(list(tmp_path.iterdir())) == 2
    newest.write_bytes(newest.read_bytes()[:200])
    state = load_checkpoint(tmp_path)
    assert state
    assert state["step"] == 2
    assert load_checkpoint(tmp_path / "nothing") is None
