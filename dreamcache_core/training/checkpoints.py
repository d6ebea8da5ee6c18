"""Checkpoints of a training, `step_000001000.checkpoint`: each is written completely or not at all.

A checkpoint is a zip, as `torch.save` writes it, and has a checksum for each tensor.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DreamCacheError
from ..io.atomic import write_atomically

KEPT = 2
"""How many checkpoints are kept: the newest one, and the one before it in case the disk damages that."""
_NAME = re.compile(r"step_([0-9]{9}|[1-9][0-9]{9,17})\.checkpoint")
_OLD_PARTIAL_FILE = re.compile(r"step_[0-9]{9,18}\.partial")
"""What earlier versions left behind when they were killed while writing."""
_LOG = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `state`, as Trainer.state gives it, and remove all but the newest checkpoints. Returns the path.

    Those of later steps are removed too: the training would have resumed from them if they could be read.

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
    so_far = [kept for kept in _checkpoints(folder) if _step(kept) <= state["step"]][-KEPT:]
    for other in set(_checkpoints(folder)) - set(so_far):
        other.unlink()
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last step, damaged or not; None if there is none."""
    return max(_checkpoints(folder), default=None, key=_step)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that can be read, with its tensors on `device`; None if there is none.

    A damaged one is logged. Raises DreamCacheError if all are damaged, and PermissionError if one may not be read.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        state = _read(path, device)
        if state is not None:
            for name in damaged:
                _LOG.warning("%s in %s is damaged: the training resumes from %s.", name, folder, path.name)
            return state
        damaged.append(path.name)
    if damaged:
        raise DreamCacheError(
            f"The training in {folder} can't be resumed because its checkpoints are damaged ({', '.join(damaged)}): "
            "replace one by a copy that you have, or remove them to start over."
        )
    return None


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name is one of a training's checkpoints."""
    return bool(_NAME.fullmatch(name))


def remove_old_partial_files(folder: Path) -> None:
    """Remove what an earlier version left of a checkpoint. No other training may use the folder."""
    for path in folder.glob("step_*.partial"):
        if _OLD_PARTIAL_FILE.fullmatch(path.name) and path.is_file():
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


def _read(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    """The state in a checkpoint, None if the checkpoint is damaged."""
    try:
        # PyTorch doesn't compare the checksums.
        with zipfile.ZipFile(path) as file:
            if file.testzip():
                return None
        state = torch.load(path, map_location=device, weights_only=True)
    except PermissionError:
        raise
    except Exception:  # A damaged file makes them raise almost any type.
        return None
    return state if isinstance(state, dict) and state.get("step") == _step(path) else None


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last. Other files, such as a user's copies, are none."""
    return sorted(
        (path for path in folder.glob("*.checkpoint") if is_checkpoint(path.name) and path.is_file()), key=_step
    )


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
