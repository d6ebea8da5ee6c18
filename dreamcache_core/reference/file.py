"""Reference cache files, small enough to share. Their header says what the references were encoded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import DreamCacheError
from ..io.file_state import wait_until_settled
from ..io.finite import check_finite
from ..io.json_fields import Fields
from ..io.tensor_file import TensorFile, checked_header, file_version, open_tensors, read_header, write_file
from ..unet import PIXELS_PER_LATENT, STAGES, Stage
from .cache import ReferenceCache
from .contents import MissingTensorError, Precision, pack, unpack, unpack_first_version

FILE_KIND = "reference_cache"
FILE_VERSION = 2


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """The content of a reference cache file.

    `precision`: of the features. `error`: relative rounding error of the features, norm of the difference over norm, in
    the layer where it is largest; None if the file doesn't say.
    """

    references: ReferenceCache
    precision: str
    error: float | None = None

    @property
    def error_description(self) -> str:
        return "" if self.error is None else f"error {self.error:.2%}"

    @property
    def description(self) -> str:
        """The content in a few lines, for the person at the graph."""
        references, count = self.references, len(self.references)
        error = f", {self.error_description}" if self.error_description else ""
        lines = [
            f"{count} reference{'s' * (count > 1)} for {references.base_model}, {self.precision}{error}",
            f"layers: {', '.join(layer.name for layer in references.layers)}",
        ]
        for batch in references.batches:
            height, width = (PIXELS_PER_LATENT * side for side in batch.latent_size)
            line = f'{width}×{height} pixels, timestep {batch.timestep}, prompt "{batch.prompt}"'
            if batch.strength != 1:
                line += f", strength {batch.strength:g}"
            if batch.source:
                line += f", encoded with {batch.source.weights} by DreamCache {batch.source.version}"
            lines.append(line)
        return "\n".join(lines)


def save_references(
    path: Path, references: ReferenceCache, precision: Precision = "float16", stages: tuple[Stage, ...] = STAGES
) -> ReferenceFile:
    """Write references, with the layers of these stages. Returns the file's content.

    Raises DreamCacheError if there are too many references, or if the features are too large for float16.
    """
    layers = tuple(layer for layer in references.layers if layer.stage in stages)
    header, tensors = pack(references, layers, precision)
    write_file(path, FILE_KIND, FILE_VERSION, header, tensors)
    return ReferenceFile(unpack(Fields(header), tensors), precision, header["error"])


def load_references(path: Path, device: torch.device | str = "cpu") -> ReferenceFile:
    """Read references; those in float8 become float16. Raises DreamCacheError for any other file."""
    wait_until_settled(path)
    with open_tensors(path) as file:
        _describe(path, file)  # First, so that no other file, of gigabytes perhaps, is read.
        stored = file.read()
        for name, tensor in stored.items():
            check_finite(tensor, f"{name} of {path.name}", "encode the reference again, and save it again")
        tensors = {name: tensor.to(device) for name, tensor in stored.items()}
        return _interpret(path, file.metadata, tensors)


@dataclass(frozen=True)
class ReferenceDescription:
    """What the header of a reference cache file says.

    `size`: in bytes. `base_model`: the family it was encoded with. `description`: ReferenceFile's. `thumbnails`: how
    many there are. `problem`: why the file can't be used, None if it can.
    """

    size: int
    base_model: str | None = None
    description: str | None = None
    thumbnails: int = 0
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}


def describe_references(path: Path) -> ReferenceDescription:
    """Describe a file that `load_references` would read, by its header alone."""
    try:
        size = path.stat().st_size
        file = _read_header_alone(path)
    except OSError:
        return ReferenceDescription(0, problem=f"{path} does not exist.")
    except DreamCacheError as error:
        return ReferenceDescription(size, problem=str(error))
    return ReferenceDescription(size, file.references.base_model, file.description, len(_thumbnails(file)))


def read_thumbnails(path: Path) -> tuple[bytes, ...]:
    """The JPEG thumbnails in a file's header. Raises DreamCacheError if it is no reference cache."""
    return _thumbnails(_read_header_alone(path))


def _thumbnails(file: ReferenceFile) -> tuple[bytes, ...]:
    sources = (batch.source for batch in file.references.batches)
    return tuple(thumbnail for source in sources if source for thumbnail in source.thumbnails)


def _read_header_alone(path: Path) -> ReferenceFile:
    with open_tensors(path) as file:
        return _describe(path, file)


def _describe(path: Path, file: TensorFile) -> ReferenceFile:
    """The content of a file, with features on the meta device."""
    return _interpret(path, file.metadata, file.shells())


def _interpret(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> ReferenceFile:
    """The references in these tensors. Raises DreamCacheError if they are something else."""
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    if header is None:
        raise DreamCacheError(
            f"{path.name} is not a DreamCache reference cache: choose a file that DreamCache Save Reference Cache "
            "wrote."
        )
    with checked_header(path):
        try:
            if file_version(metadata) == 1:
                references = unpack_first_version(header, tensors)
                dtype = references.batches[0].features[references.layers[0].name].dtype
                return ReferenceFile(references, str(dtype).removeprefix("torch."))
            error = header.number("error") if header.has("error") else None
            return ReferenceFile(unpack(header, tensors), header.text("precision"), error)
        except MissingTensorError as lacking:
            raise DreamCacheError(
                f"{path.name} lacks '{lacking}', which its header lists: download it again."
            ) from lacking
