"""Reference cache files, small enough to share. Their header says what the references were encoded with."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps

from ..errors import DreamCacheError
from ..io.tensor_file import Header, read_header, read_shapes, read_tensors, write_file
from ..unet import PIXELS_PER_LATENT, STAGES, Stage, TransformerLayer
from .cache import CachingInput, ReferenceBatch, ReferenceCache, Source

FILE_KIND = "reference_cache"
FILE_VERSION = 2
THUMBNAIL_SIZE = 160
"""The longer side of a thumbnail in pixels."""

Precision = Literal["float16", "float8"]
# Name suffix of a float8 tensor's scale for each channel: the largest float8 is 448.
_SCALE = ".scale"
# Name suffix of a batch's subject, beside its features `0.middle_block.1`.
_SUBJECT = ".subject"
# Name suffix of the tensors of a batch's caching inputs, before the number of all but the first, and their own names.
_CACHING_INPUT = ".caching_input."
_CACHED_TENSORS = ("latent", "noise", "context", "pooled")


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


def make_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of the entire image."""
    file = io.BytesIO()
    ImageOps.contain(image.convert("RGB"), (THUMBNAIL_SIZE, THUMBNAIL_SIZE)).save(file, "JPEG", quality=80)
    return file.getvalue()


def save_references(
    path: Path, references: ReferenceCache, precision: Precision = "float16", stages: tuple[Stage, ...] = STAGES
) -> ReferenceFile:
    """Write references, with the layers of these stages. Returns the file's content.

    Raises DreamCacheError if the features are too large for float16.
    """
    layers = tuple(layer for layer in references.layers if layer.stage in stages)
    tensors: dict[str, torch.Tensor] = {}
    errors = []
    for number, batch in enumerate(references.batches):
        if batch.subject is not None:
            tensors[f"{number}{_SUBJECT}"] = batch.subject.clone()  # several batches may share it
        for place, given in enumerate(batch.caching_inputs):
            prefix = _caching_input_prefix(number, place)
            given_tensors = {name: getattr(given, name) for name in _CACHED_TENSORS}
            tensors |= {prefix + name: tensor.clone() for name, tensor in given_tensors.items() if tensor is not None}
        for layer in layers:
            features, name = batch.features[layer.name].float(), f"{number}.{layer.name}"
            stored, scale = _store(features, precision)
            tensors[name] = stored
            if scale is not None:
                tensors[name + _SCALE] = scale
            errors.append(float((_restore(stored, scale).float() - features).norm() / features.norm()))
    error = max(errors)
    if not error < float("inf"):
        raise DreamCacheError("The features of the reference are too large for float16: encode it with another model.")
    header = {
        "base_model": references.base_model,
        "layers": [layer.to_json() for layer in layers],
        "precision": precision,
        "error": error,
        "paired": references.per_latent,
        "caches": [_describe(batch) for batch in references.batches],
    }
    write_file(path, FILE_KIND, FILE_VERSION, header, tensors)
    return ReferenceFile(_build(header, tensors), precision, error)


def load_references(path: Path, device: torch.device | str = "cpu") -> ReferenceFile:
    """Read references; those in float8 become float16. Raises DreamCacheError for any other file."""
    metadata, tensors = read_tensors(path)
    return _interpret(path, metadata, {name: tensor.to(device) for name, tensor in tensors.items()})


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
    """The content of a file, with features on the meta device."""
    metadata, shapes = read_shapes(path)
    shells = {name: torch.empty(shape, dtype=torch.float16, device="meta") for name, shape in shapes.items()}
    return _interpret(path, metadata, shells)


def _interpret(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> ReferenceFile:
    """The references in these tensors. Raises DreamCacheError if they are something else."""
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    if header is None:
        raise DreamCacheError(
            f"{path.name} is not a DreamCache reference cache: choose a file that DreamCache Save Reference Cache "
            "wrote."
        )
    try:
        if metadata["version"] == "1":
            precision = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
            header = {**header, "precision": precision, "error": None, "paired": False, "caches": [header]}
            tensors = {f"0.{layer}": tensor for layer, tensor in tensors.items()}
        return ReferenceFile(_build(header, tensors), header["precision"], header["error"])
    except KeyError as error:
        raise DreamCacheError(f"{path.name} lacks {error}, which its header lists: download it again.") from error
    except (AttributeError, IndexError, StopIteration, TypeError, ValueError) as error:
        raise DreamCacheError(f"{path.name} has a damaged header: download it again.") from error


def _describe(batch: ReferenceBatch) -> Header:
    source = batch.source
    return {
        "latent_size": list(batch.latent_size),
        "timestep": batch.timestep,
        "prompt": batch.prompt,
        "strength": batch.strength,
        "average_weights": [given.weight for given in batch.caching_inputs],
        "source": source
        and {
            "base_hash": source.base_hash,
            "patched": source.patched,
            "thumbnails": [base64.b64encode(image).decode() for image in source.thumbnails],
            "version": source.version,
        },
    }


def _build(header: Header, tensors: Mapping[str, torch.Tensor]) -> ReferenceCache:
    layers = tuple(TransformerLayer(**layer) for layer in header["layers"])
    batches = tuple(
        _build_batch(described, header["base_model"], layers, number, tensors)
        for number, described in enumerate(header["caches"])
    )
    return ReferenceCache(batches, header["paired"])


def _build_batch(
    described: Header,
    base_model: str,
    layers: tuple[TransformerLayer, ...],
    number: int,
    tensors: Mapping[str, torch.Tensor],
) -> ReferenceBatch:
    height, width = described["latent_size"]
    source: dict[str, Any] | None = described.get("source")
    stored = {layer.name: f"{number}.{layer.name}" for layer in layers}
    return ReferenceBatch(
        features={layer: _restore(tensors[name], tensors.get(name + _SCALE)) for layer, name in stored.items()},
        base_model=base_model,
        layers=layers,
        latent_size=(height, width),
        timestep=described["timestep"],
        prompt=described["prompt"],
        source=_build_source(source) if source else None,
        strength=described.get("strength", 1.0),
        subject=tensors.get(f"{number}{_SUBJECT}"),
        caching_inputs=tuple(_build_caching_inputs(number, described.get("average_weights", [1.0]), tensors)),
    )


def _build_caching_inputs(
    number: int, weights: Sequence[float], tensors: Mapping[str, torch.Tensor]
) -> Iterator[CachingInput]:
    """None in a file of an earlier version of this project."""
    for place, weight in enumerate(weights):
        prefix = _caching_input_prefix(number, place)
        latent, noise, context, pooled = (tensors.get(prefix + name) for name in _CACHED_TENSORS)
        if latent is not None and noise is not None and context is not None:
            yield CachingInput(latent, noise, context, pooled, weight)


def _caching_input_prefix(number: int, place: int) -> str:
    return f"{number}{_CACHING_INPUT}{f'{place}.' if place else ''}"


def _build_source(described: Header) -> Source:
    return Source(
        base_hash=described["base_hash"],
        patched=described["patched"],
        thumbnails=tuple(base64.b64decode(image) for image in described["thumbnails"]),
        version=described["version"],
    )


def _store(features: torch.Tensor, precision: Precision) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features as they are stored, and the scale of each channel if they are stored in float8.

    `features`: of a layer, (references, channels, height, width) float32.
    """
    if precision == "float16":
        return features.half(), None
    scale = features.abs().amax(dim=(2, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (features / scale).to(torch.float8_e4m3fn), scale


def _restore(stored: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return stored if scale is None else (stored.float() * scale).half()
