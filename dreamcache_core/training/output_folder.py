"""The output folder of a training, and the names of everything in it.

step_000001000.checkpoint   what the training resumes from: the last two (checkpoints.py)
begun_with.json             what it was begun with, and must resume with
losses.txt                  the loss of each step, one a line; nan where it isn't known
validations.jsonl           what each validation measured, one a line
samples/step_000001000.png  contact sheets of samples
adapter.safetensors         the adapter as of the newest checkpoint; written by the command only
logs/                       TensorBoard events; written by the command only
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..adapter.file import save_adapter
from ..adapter.network import Adapter
from ..errors import DreamCacheError
from ..io.atomic import check_writable, remove_partial_files, write_atomically
from ..io.failures import reason
from ..io.json_fields import MalformedError, parse_json
from . import checkpoints
from .validation import Validation

_NEWEST = 16
# What earlier versions didn't record, as it was then.
_UNRECORDED = {"held_out": 0}
_SHEET = re.compile(r"step_([0-9]{9}|[1-9][0-9]{9,17})\.png")
_LOG = logging.getLogger(__name__)


class TrainingFolder:
    """The output folder of a training. Its methods raise OSError, which `writing` turns into a sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter_path = path / "adapter.safetensors"
        self.logs = path / "logs"
        self._begun_with = path / "begun_with.json"
        self._losses = path / "losses.txt"
        self._validations = path / "validations.jsonl"
        self._samples = path / "samples"

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Raise DreamCacheError where the folder can't be written to, or other files can't be read."""
        try:
            yield
        except OSError as error:
            raise DreamCacheError(
                f"{error.filename or self.path} could not be read or written: {reason(error)}, then start the "
                "training again to resume it."
            ) from error

    def check_writable(self) -> None:
        """Raise DreamCacheError if something of a training can't be written here: known before a model is loaded."""
        for folder in (self.path, self._samples, self.logs):
            check_writable(folder)
        if self.adapter_path.is_dir():
            raise DreamCacheError(f"{self.adapter_path} is a folder, where the adapter is written: rename it.")

    # --- Beginning and resuming --------------------------------------------------------------------------------------

    def begin(self, settings: Mapping[str, str | int], *, write: bool = True) -> None:
        """Check that a training resumes with the settings it was begun with, or record them if it begins here.

        A setting that was not recorded is recorded now. Without `write`, nothing is. Raises DreamCacheError if a
        setting differs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        before = self._read_begun_with() if checkpoints.newest_checkpoint(self.path) else None
        before = {} if before is None else {**_UNRECORDED, **before}
        for name, value in settings.items():
            if before.get(name, value) != value:
                raise DreamCacheError(
                    f'The training "{self.path.resolve().name}" was started with {name} {before[name]}, but now it '
                    f"is {value}: set it back to resume, or choose a new name to start over."
                )
        if write and not settings.keys() <= before.keys():
            write_atomically(self._begun_with, json.dumps({**before, **settings}, indent=2).encode(), durable=True)

    def clean(self) -> None:
        """Remove the partial files of a process that was killed. No other process may train in this folder."""
        files = {path.name for path in (self._begun_with, self._losses, self._validations, self.adapter_path)}
        remove_partial_files(self.path, lambda name: name in files or checkpoints.is_checkpoint(name))
        remove_partial_files(self._samples, lambda name: bool(_SHEET.fullmatch(name)))
        checkpoints.remove_old_partial_files(self.path)

    def check_room(self, state: Mapping[str, Any]) -> None:
        """Raise DreamCacheError unless the disk has the room that checkpoints need."""
        checkpoints.check_room(self.path, state)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest state that can be read; None if there is none."""
        return checkpoints.load_checkpoint(self.path)

    def _read_begun_with(self) -> dict[str, Any]:
        if not self._begun_with.is_file():
            return {}  # A training of the command, from before it wrote this file.
        with contextlib.suppress(MalformedError):
            before = parse_json(self._begun_with.read_bytes())
            if isinstance(before, dict):
                return before
        _LOG.warning(
            "%s is damaged, so it can't be checked that this training resumes with the settings it was begun with: "
            "make sure that it does. The file is written again.",
            self._begun_with,
        )
        return {}

    # --- State -------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        checkpoints.save_checkpoint(self.path, state)

    def save_adapter(self, adapter: Adapter) -> None:
        save_adapter(self.adapter_path, adapter)

    # --- Losses ------------------------------------------------------------------------------------------------------

    def losses(self) -> list[float]:
        """The loss of each step so far."""
        return [_number(line) for line in _complete_lines(self._losses)]

    def resume_losses(self, steps: int) -> list[float]:
        """The losses of the first `steps` steps, NaN where they aren't known. Losses of later steps are dropped."""
        lines = _complete_lines(self._losses)[:steps]
        lines = [str(math.nan) if math.isnan(_number(line)) else line for line in lines]
        lines += [str(math.nan)] * (steps - len(lines))
        write_atomically(self._losses, "".join(f"{line}\n" for line in lines).encode())
        return [float(line) for line in lines]

    def add_loss(self, loss: float) -> None:
        with self._losses.open("a", encoding="utf-8") as file:
            file.write(f"{loss:.6g}\n")

    # --- Validations -------------------------------------------------------------------------------------------------

    def validations(self, steps: float = math.inf) -> list[Validation]:
        """Those of the first `steps` steps, in order, without damaged ones."""
        found: list[Validation] = []
        for line in _complete_lines(self._validations):
            with contextlib.suppress(MalformedError):
                found.append(Validation.from_json(parse_json(line)))
        return [validation for validation in found if validation.step <= steps]

    def add_validation(self, validation: Validation) -> None:
        with self._validations.open("a", encoding="utf-8") as file:
            file.write(json.dumps(validation.to_json()) + "\n")

    def keep_validations(self, validations: Sequence[Validation]) -> None:
        """Drop all others."""
        if validations or self._validations.is_file():
            lines = [json.dumps(validation.to_json()) + "\n" for validation in validations]
            write_atomically(self._validations, "".join(lines).encode())

    # --- Samples -----------------------------------------------------------------------------------------------------

    def add_sheet(self, sheet: Image.Image, step: int) -> Path:
        """Write the contact sheet of the samples of a step. Returns its path."""
        path, content = self.sheet_path(step), io.BytesIO()
        sheet.save(content, "PNG")
        write_atomically(path, content.getbuffer())
        return path

    def sheets(self, steps: int) -> list[Image.Image]:
        """The newest contact sheets of the first `steps` steps, the newest last, without those of another size."""
        paths = [self.sheet_path(step) for step in self.sheet_steps() if step <= steps]
        sheets = [sheet for path in paths[-_NEWEST:] if (sheet := _open_sheet(path))]
        return [sheet for sheet in sheets if sheet.size == sheets[-1].size]

    def sheet_steps(self) -> list[int]:
        """The steps that have a contact sheet, in order."""
        found = (_SHEET.fullmatch(path.name) for path in self._samples.glob("step_*.png"))
        return sorted(int(match[1]) for match in found if match)

    def sheet_path(self, step: int) -> Path:
        """The path of the contact sheet of a step, whether there is one or not."""
        return self._samples / f"step_{step:09d}.png"


def _complete_lines(path: Path) -> list[str]:
    """The lines of a file, none if it isn't there."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    # Without the last part: a line that is being written right now, or nothing.
    return text.split("\n")[:-1]


def _open_sheet(path: Path) -> Image.Image | None:
    """A contact sheet, None if it is damaged, which is logged."""
    try:
        return Image.open(path).convert("RGB")
    except Exception:  # Pillow's decoders raise many types for a damaged file.
        _LOG.warning("%s is damaged and isn't shown: delete it.", path)
        return None


def _number(line: str) -> float:
    """The number on a line, NaN if the line is damaged."""
    try:
        return float(line)
    except ValueError:
        return math.nan
