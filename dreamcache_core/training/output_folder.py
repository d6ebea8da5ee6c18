"""What a training keeps beside its checkpoints: what it was begun with, its losses, and its samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from ..errors import DreamCacheError
from .checkpoints import newest_checkpoint

_NEWEST = 16


class TrainingFolder:
    """The folder of a training, which goes on in it whenever it is started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun_with = path / "begun_with.json"
        self._losses = path / "losses.txt"
        self._samples = path / "samples"

    def begin(self, settings: Mapping[str, str | int]) -> None:
        """Note what a training is begun with; if there are checkpoints of it, see that it goes on with the same.

        Raises DreamCacheError if one of its settings is another now.
        """
        if newest_checkpoint(self.path) is None or not self._begun_with.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            self._begun_with.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        before = json.loads(self._begun_with.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name) != value:
                raise DreamCacheError(
                    f'The training "{self.path.name}" was started with {name} {before.get(name)}, but now it is '
                    f"{value}: set it back to resume, or choose a new name to start over."
                )

    def resume_losses(self, steps: int) -> list[float]:
        """Losses of the first `steps` steps, one each. Those of later ones, which no checkpoint knows, are dropped."""
        lines = self._read_losses()[:steps]
        self._losses.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return [float(line) for line in lines]

    def losses(self) -> list[float]:
        """The loss of each step so far."""
        return [float(line) for line in self._read_losses()]

    def _read_losses(self) -> list[str]:
        text = self._losses.read_text(encoding="utf-8") if self._losses.is_file() else ""
        # Not what is being written right now.
        return text[: text.rfind("\n") + 1].splitlines()

    def add_loss(self, loss: float) -> None:
        with self._losses.open("a", encoding="utf-8") as file:
            file.write(f"{loss:.6g}\n")

    def sheets(self, steps: int) -> list[Image.Image]:
        """The newest contact sheets of the first `steps` steps, the last one last; none of another size than that."""
        paths = [self.sheet_path(step) for step in self.sheet_steps() if step <= steps]
        sheets = [Image.open(path).convert("RGB") for path in paths[-_NEWEST:]]
        return [sheet for sheet in sheets if sheet.size == sheets[-1].size]

    def add_sheet(self, sheet: Image.Image, step: int) -> Path:
        """Keep the contact sheet of what was drawn after a step. Returns its path."""
        self._samples.mkdir(exist_ok=True)
        path = self.sheet_path(step)
        partial = path.with_suffix(".partial")
        sheet.save(partial, "PNG")
        partial.replace(path)
        return path

    def sheet_steps(self) -> list[int]:
        """The steps after which there is a contact sheet, in their order."""
        return sorted(int(path.stem[5:]) for path in self._samples.glob("step_*.png"))

    def sheet_path(self, step: int) -> Path:
        """Where the contact sheet of what was drawn after a step is kept."""
        return self._samples / f"step_{step:09d}.png"
