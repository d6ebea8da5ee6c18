"""Checkpoints of a training, `step_000001000.checkpoint`: each is written completely or not at all."""

from __future__ import annotations

import errno
import io
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DreamCacheError
from ..io.atomic import remove_partial_files, write_atomically

KEPT = 2
"""How many checkpoints are kept: the newest one, and the one before it in case the disk damages that."""
_NAME = re.compile(r"step_(\d{9,})\.checkpoint")
_OLD_PARTIAL_FILES = "step_*.partial"
"""What earlier versions left behind when they were killed while writing."""


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `state`, as Trainer.state gives it, and remove all but the newest checkpoints. Returns the path.

    Raises DreamCacheError if the disk is full, and OSError if the folder can't be written to; the earlier checkpoints
    are complete then.
    """
    path = folder / f"step_{state['step']:09d}.checkpoint"
    content = io.BytesIO()
    torch.save(dict(state), content)
    try:
        write_atomically(path, content.getbuffer(), durable=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        last = newest_checkpoint(folder)
        raise DreamCacheError(
            f"The disk of {folder} is full, so the checkpoint of step {state['step']} was not written: free some "
            f"space, then resume from {last.name if last else 'the start, as there is no earlier one'}."
        ) from error
    for old in _checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last step, damaged or not; None if there is none."""
    return max(_checkpoints(folder), default=None, key=_step)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that can be read, with its tensors on `device`; None if there is none."""
    for path in reversed(_checkpoints(folder)):
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            continue
    return None


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove what a training that was killed had written of a checkpoint. No other training may use the folder."""
    remove_partial_files(folder)
    for path in folder.glob(_OLD_PARTIAL_FILES):
        path.unlink(missing_ok=True)


def room_needed(state: Mapping[str, Any]) -> int:
    """Bytes of the checkpoints that are kept, and of one more while it is written.

    `state`: of any step, the one before the first included, when the optimiser has no state yet.
    """
    # The adapter's weights, their averages, and two numbers of the optimiser's for each weight.
    return (KEPT + 1) * 4 * sum(tensor.nbytes for tensor in state["adapter"].values())


def check_room(folder: Path, state: Mapping[str, Any]) -> None:
    """Raise DreamCacheError unless the disk has the room that checkpoints need."""
    needed, free = room_needed(state), shutil.disk_usage(folder).free
    if free < needed:
        raise DreamCacheError(
            f"The disk of {folder} has {free / 2**20:,.0f} MB left, but training needs {needed / 2**20:,.0f} MB there "
            "for its checkpoints: free some space or choose another folder."
        )


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last. Other files, such as a user's copies, are none."""
    return sorted((path for path in folder.glob("*.checkpoint") if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
