"""Checkpoints of a training: written whole or not at all, so that it can be stopped at any moment and go on."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DreamCacheError

# The last one, and the one before it, should the disk have damaged that.
KEPT = 2


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `state`, as Trainer.state gives it, and remove all but the newest checkpoints. Returns its path.

    Raises DreamCacheError if the disk is full; the earlier checkpoints are whole then.
    """
    path = folder / f"step_{state['step']:09d}.checkpoint"
    partial = path.with_suffix(".partial")
    content = io.BytesIO()
    torch.save(dict(state), content)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise
        last = newest_checkpoint(folder)
        raise DreamCacheError(
            f"The disk of {folder} is full, so the checkpoint of step {state['step']} was not written: free some "
            f"space, then resume from {last.name if last else 'the start, as there is no earlier one'}."
        ) from error
    for old in sorted(folder.glob("*.checkpoint"))[:-KEPT]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("*.checkpoint"), default=None)


def room_needed(state: Mapping[str, Any]) -> int:
    """Bytes of the checkpoints that are kept, and of one that is being written.

    `state`: as it is before the first step too, when the optimiser hasn't its two numbers for each weight yet.
    """
    return (KEPT + 1) * 4 * sum(tensor.nbytes for tensor in state["adapter"].values())


def check_room(folder: Path, state: Mapping[str, Any]) -> None:
    """Raise DreamCacheError unless the disk has the room that checkpoints need."""
    needed, free = room_needed(state), shutil.disk_usage(folder).free
    if free < needed:
        raise DreamCacheError(
            f"The disk of {folder} has {free / 2**20:,.0f} MB left, but training needs {needed / 2**20:,.0f} MB there "
            "for its checkpoints: free some space or choose another folder."
        )


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint in `folder` that can be read, its tensors on `device`; None if there is none."""
    for path in sorted(folder.glob("*.checkpoint"), reverse=True):
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            continue
    return None
