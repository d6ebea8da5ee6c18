"""Timesteps of a training, and its folder: damage is noticed, and what is the user's stays."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, save_checkpoint
from dreamcache.dreamcache_core.training.loss import sample_noise
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from PIL import Image


def test_noisy_timesteps_are_drawn_more_often_if_they_should_be() -> None:
    uniform, noisy = (sample_noise(range(4000), (1,), 1000, 0, bias)[0] for bias in (0.0, 1.0))
    assert 0 <= noisy.min() < noisy.max() <= 999
    # Of a density that rises as t does, three quarters lie in the upper half, and the rest is drawn as before.
    assert (uniform >= 500).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (noisy >= 500).float().mean() == pytest.approx(0.75, abs=0.03)


def save_three(folder: Path) -> list[Path]:
    """Save three checkpoints. Returns the paths of the two that are kept."""
    for step in (1, 2, 3):
        save_checkpoint(folder, {"step": step, "tensor": torch.full((1000,), float(step))})
    return sorted(folder.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def zero_a_block(path: Path) -> None:
    """As a bad block of a disk does: in the middle of the tensor, where nothing else tells of it."""
    content = bytearray(path.read_bytes())
    place = content.index(np.float32(float(int(path.stem[-1]))).tobytes() * 100)
    content[place + 512 : place + 1024] = bytes(512)
    path.write_bytes(content)


def put_another_there(path: Path) -> None:
    path.write_bytes(path.with_name("step_000000002.checkpoint").read_bytes())


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, zero_a_block, put_another_there, empty])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_is_named(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = save_three(tmp_path)
    damage(newest)
    state = load_checkpoint(tmp_path)
    assert state and state["step"] == 2
    assert "step_000000003.checkpoint" in caplog.text and "resumes from step_000000002.checkpoint" in caplog.text
    # The training takes other steps from here: what is damaged is no checkpoint of it any more.
    save_checkpoint(tmp_path, {"step": 2, "tensor": torch.zeros(1)})
    assert sorted(tmp_path.iterdir()) == [before]
    assert load_checkpoint(tmp_path / "nothing") is None


def test_a_training_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path: Path) -> None:
    for path in save_three(tmp_path):
        cut(path)
    names = r"step_000000003\.checkpoint, step_000000002\.checkpoint"
    with pytest.raises(DreamCacheError, match=rf"its checkpoints are damaged \({names}\): replace one by a copy"):
        load_checkpoint(tmp_path)


def test_files_of_the_user_are_neither_read_nor_deleted(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path)
    names = ["step_000000004 - Copy.checkpoint", "best.checkpoint", "step_9.checkpoint", "step_0000000009.checkpoint"]
    names += ["step_best.partial", f".notes.txt.{'0' * 32}", f"samples/.notes.{'0' * 32}"]
    names += ["samples/step_000000004 - Copy.png", "samples/step_0000000004.png"]
    save_three(tmp_path)
    folder.add_sheet(Image.new("RGB", (4, 4)), 3)
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    partial = tmp_path / f".step_000000004.checkpoint.{'0' * 32}"
    partial.touch()
    folder.clean()
    assert not partial.exists()
    save_checkpoint(tmp_path, {"step": 4})
    state = folder.load_checkpoint()
    assert state and state["step"] == 4
    assert folder.sheet_steps() == [3] and len(folder.sheets(4)) == 1
    assert all((tmp_path / name).read_bytes() == b"mine" for name in names)


SETTINGS: dict[str, str | int] = {"batch": 4, "seed": 3}


@pytest.mark.parametrize(
    "content", [b"", b'{"batch": 4, "se', b"[1]", b"\xff\xfe{}", b"[" * 100_000, b'{"batch": NaN}']
)
def test_damaged_settings_are_named_and_do_not_end_the_training(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    save_three(tmp_path)
    (tmp_path / "begun_with.json").write_bytes(content)
    TrainingFolder(tmp_path).begin(SETTINGS)
    assert "begun_with.json is damaged" in caplog.text and "make sure that it does" in caplog.text
    with pytest.raises(DreamCacheError, match="was started with seed 3, but now it is 4"):
        TrainingFolder(tmp_path).begin({**SETTINGS, "seed": 4})
    state = load_checkpoint(tmp_path)
    assert state and state["step"] == 3


@pytest.mark.parametrize(
    ("content", "losses"),
    [
        (b"0.5\n0.25\n0.1", [0.5, 0.25, nan]),
        (b"0.5\n0.25\n\0\0\0\0\0\0", [0.5, 0.25, nan]),
        (b"0.5\n\0\0\0\n0.125\n", [0.5, nan, 0.125]),
        (b"0.5\n0.25\n\xff\xe2\x80\xa8\n", [0.5, 0.25, nan]),
    ],
)
def test_good_lines_of_a_damaged_loss_log_are_kept(tmp_path: Path, content: bytes, losses: list[float]) -> None:
    (tmp_path / "losses.txt").write_bytes(content)
    folder = TrainingFolder(tmp_path)
    assert folder.resume_losses(3) == pytest.approx(losses, nan_ok=True)
    folder.add_loss(0.0625)
    assert folder.losses() == pytest.approx([*losses, 0.0625], nan_ok=True)
