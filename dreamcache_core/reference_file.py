"""Files of reference caches: small enough to share, and what they were made with and of is in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps

from .combined_references import CombinedReferences, References
from .errors import DreamCacheError
from .files import Header, read_header, read_shapes, read_tensors, write_file
from .layers import STAGES, Stage, TransformerLayer
from .reference_cache import ReferenceCache, Source

FILE_KIND = "reference_cache"
FILE_VERSION = 2
THUMBNAIL_SIZE = 160
"""Of the longer side, in pixels."""

Precision = Literal["float16", "float8"]
# Of a channel that is stored in float8, whose largest number is 448.
_SCALE = ".scale"
# Beside the features of a cache, which go by its number and their layers' names.
_SUBJECT = ".subject"


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """What a file of references holds.

    `precision`: of the features. `error`: what that has changed in them, the norm of the difference as a fraction of
    their own, in the layer where it is largest; None if the file doesn't tell.
    """

    references: References
    precision: str
    error: float | None = None

    @property
    def error_description(self) -> str:
        return "" if self.error is None else f"off by {self.error:.2%}"

    @property
    def description(self) -> str:
        """In a few lines, for the person at the graph."""
        references = self.references
        error = f", {self.error_description}" if self.error_description else ""
        lines = [
            f"{references.references} reference{'s' * (references.references > 1)} for {references.base_model}, "
            f"{self.precision}{error}",
            f"layers: {', '.join(layer.name for layer in references.layers)}",
        ]
        for cache in references.caches:
            height, width = cache.latent_size
            line = f'{8 * width}×{8 * height} pixels, timestep {cache.timestep}, prompt "{cache.prompt}"'
            if cache.strength != 1:
                line += f", strength {cache.strength:g}"
            if cache.source:
                line += f", encoded with {cache.source.weights} by DreamCache {cache.source.version}"
            lines.append(line)
        return "\n".join(lines)


def make_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of the whole picture."""
    file = io.BytesIO()
    ImageOps.contain(image.convert("RGB"), (THUMBNAIL_SIZE, THUMBNAIL_SIZE)).save(file, "JPEG", quality=80)
    return file.getvalue()


def save_references(
    path: Path, references: References, precision: Precision = "float16", stages: tuple[Stage, ...] = STAGES
) -> ReferenceFile:
    """Write the layers of these stages of references. Returns what the file holds.

    Raises DreamCacheError where the features are too large for float16.
    """
    layers = tuple(layer for layer in references.layers if layer.stage in stages)
    tensors: dict[str, torch.Tensor] = {}
    errors = []
    for number, cache in enumerate(references.caches):
        if cache.subject is not None:
            tensors[f"{number}{_SUBJECT}"] = cache.subject.clone()  # the same may be in several caches
        for layer in layers:
            features, name = cache.features[layer.name].float(), f"{number}.{layer.name}"
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
        "paired": references.paired,
        "caches": [_describe(cache) for cache in references.caches],
    }
    write_file(path, FILE_KIND, FILE_VERSION, header, tensors)
    return ReferenceFile(_build(header, tensors), precision, error)


def load_references(path: Path, device: torch.device | str = "cpu") -> ReferenceFile:
    """Read references, in float16 if they were stored in float8. Raises DreamCacheError if the file is another."""
    metadata, tensors = read_tensors(path)
    return _interpret(path, metadata, {name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class ReferenceDescription:
    """What a file is, as far as one can tell without reading features.

    `size`: in bytes. `base_model`: the family it was encoded with. `description`: as ReferenceFile has it.
    `thumbnails`: how many there are. `problem`: why it can't be used.
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
        return ReferenceDescription(0, problem=f"{path} is not there.")
    except DreamCacheError as error:
        return ReferenceDescription(size, problem=str(error))
    return ReferenceDescription(size, file.references.base_model, file.description, len(_thumbnails(file)))


def read_thumbnails(path: Path) -> tuple[bytes, ...]:
    """The small JPEGs in a file, of which nothing but its header is read. Raises as `load_references` does."""
    return _thumbnails(_read_header_alone(path))


def _thumbnails(file: ReferenceFile) -> tuple[bytes, ...]:
    sources = (cache.source for cache in file.references.caches)
    return tuple(thumbnail for source in sources if source for thumbnail in source.thumbnails)


def _read_header_alone(path: Path) -> ReferenceFile:
    """What a file holds, with features that have a shape and no values."""
    metadata, shapes = read_shapes(path)
    shells = {name: torch.empty(shape, dtype=torch.float16, device="meta") for name, shape in shapes.items()}
    return _interpret(path, metadata, shells)


def _interpret(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> ReferenceFile:
    """Raises DreamCacheError unless these are of references."""
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    if header is None:
        raise DreamCacheError(
            f"{path.name} is not a DreamCache reference cache: choose one that DreamCache Save Reference Cache wrote."
        )
    try:
        if metadata["version"] == "1":
            precision = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
            header = {**header, "precision": precision, "error": None, "paired": False, "caches": [header]}
            tensors = {f"0.{layer}": tensor for layer, tensor in tensors.items()}
        return ReferenceFile(_build(header, tensors), header["precision"], header["error"])
    except KeyError as error:
        raise DreamCacheError(f"{path.name} lacks {error}, which its header tells of: download it again.") from error
    except (AttributeError, IndexError, StopIteration, TypeError, ValueError) as error:
        raise DreamCacheError(f"{path.name} has a damaged header: download it again.") from error


def _describe(cache: ReferenceCache) -> Header:
    source = cache.source
    return {
        "latent_size": list(cache.latent_size),
        "timestep": cache.timestep,
        "prompt": cache.prompt,
        "strength": cache.strength,
        "source": source
        and {
            "base_hash": source.base_hash,
            "patched": source.patched,
            "thumbnails": [base64.b64encode(image).decode() for image in source.thumbnails],
            "version": source.version,
        },
    }


def _build(header: Header, tensors: Mapping[str, torch.Tensor]) -> References:
    layers = tuple(TransformerLayer(**layer) for layer in header["layers"])
    caches = tuple(
        _build_cache(described, header["base_model"], layers, number, tensors)
        for number, described in enumerate(header["caches"])
    )
    if len(caches) > 1 or header["paired"]:
        return CombinedReferences(caches, header["paired"])
    return caches[0]


def _build_cache(
    described: Header,
    base_model: str,
    layers: tuple[TransformerLayer, ...],
    number: int,
    tensors: Mapping[str, torch.Tensor],
) -> ReferenceCache:
    height, width = described["latent_size"]
    source: dict[str, Any] | None = described.get("source")
    stored = {layer.name: f"{number}.{layer.name}" for layer in layers}
    return ReferenceCache(
        features={layer: _restore(tensors[name], tensors.get(name + _SCALE)) for layer, name in stored.items()},
        base_model=base_model,
        layers=layers,
        latent_size=(height, width),
        timestep=described["timestep"],
        prompt=described["prompt"],
        source=_build_source(source) if source else None,
        strength=described.get("strength", 1.0),
        subject=tensors.get(f"{number}{_SUBJECT}"),
    )


def _build_source(described: Header) -> Source:
    return Source(
        base_hash=described["base_hash"],
        patched=described["patched"],
        thumbnails=tuple(base64.b64decode(image) for image in described["thumbnails"]),
        version=described["version"],
    )


def _store(features: torch.Tensor, precision: Precision) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of a layer, (references, channels, height, width) float32, and what their channels are divided by."""
    if precision == "float16":
        return features.half(), None
    scale = features.abs().amax(dim=(2, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (features / scale).to(torch.float8_e4m3fn), scale


def _restore(stored: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return stored if scale is None else (stored.float() * scale).half()
