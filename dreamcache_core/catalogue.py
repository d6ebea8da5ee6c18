"""What lies in a models folder, told by the files' headers alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from .errors import DreamCacheError
from .files import read_shapes
from .layers import family

_NETWORK = "model.diffusion_model."
_FIRST_WEIGHT = f"{_NETWORK}input_blocks.0.0.weight"
_READS_PROMPT = re.compile(re.escape(_NETWORK) + r"input_blocks\..*\.attn2\.to_k\.weight")


Description = TypeVar("Description")


class Catalogue(Generic[Description]):
    """What `describe` tells of files, for any number of threads. A file is read again when it has changed."""

    def __init__(self, describe: Callable[[Path], Description]) -> None:
        self._describe = describe
        self._known: dict[Path, tuple[tuple[int, int], Description]] = {}

    def describe(self, path: Path) -> Description:
        try:
            status = path.stat()
        except OSError:
            self._known.pop(path, None)
            return self._describe(path)
        state = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != state:
            known = self._known[path] = state, self._describe(path)
        return known[1]

    def describe_all(self, files: Mapping[str, Path]) -> dict[str, Description]:
        """Files, by whatever names they have; all others are forgotten."""
        descriptions = {name: self.describe(path) for name, path in files.items()}
        known = self._known.copy()
        self._known = {path: known[path] for path in files.values() if path in known}
        return descriptions


def checkpoint_family(path: Path) -> str | None:
    """The base model family of a checkpoint, as UNetStructure has it; None if its header doesn't tell.

    Only `.safetensors` checkpoints in the LDM layout tell.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        _, shapes = read_shapes(path)
    except DreamCacheError:
        return None
    first = shapes.get(_FIRST_WEIGHT)
    reads_prompt = next(filter(_READS_PROMPT.fullmatch, shapes), None)
    if not first or not reads_prompt:
        return "no U-Net such as SD1.x's" if any(name.startswith(_NETWORK) for name in shapes) else None
    return family(model_channels=first[0], context_dim=shapes[reads_prompt][-1])
