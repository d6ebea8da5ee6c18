"""What lies in a models folder, told by the files' headers alone: adapters, and the families of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .adapter_file import AdapterDescription, describe_adapter
from .errors import DreamCacheError
from .files import read_shapes
from .layers import family

_NETWORK = "model.diffusion_model."
_FIRST_WEIGHT = f"{_NETWORK}input_blocks.0.0.weight"
_READS_PROMPT = re.compile(re.escape(_NETWORK) + r"input_blocks\..*\.attn2\.to_k\.weight")


class AdapterCatalogue:
    """Descriptions of adapter files, for any number of threads. A file is read again when it has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], AdapterDescription]] = {}

    def describe(self, path: Path) -> AdapterDescription:
        """As `describe_adapter` does."""
        try:
            status = path.stat()
        except OSError:
            self._known.pop(path, None)
            return describe_adapter(path)
        state = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != state:
            known = self._known[path] = state, describe_adapter(path)
        return known[1]

    def describe_all(self, files: Mapping[str, Path]) -> dict[str, AdapterDescription]:
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
