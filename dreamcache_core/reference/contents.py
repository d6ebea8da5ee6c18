"""What a reference cache file contains: the fields of its header, and its tensors by name."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch

from ..errors import DreamCacheError
from ..io.json_fields import Fields, MalformedError
from ..io.layers import read_layers
from ..io.tensor_file import Header
from ..unet import TransformerLayer
from .cache import CachingInput, ReferenceBatch, ReferenceCache, Source
from .thumbnails import read_thumbnails

Precision = Literal["float16", "float8"]
Tensors = Mapping[str, torch.Tensor]

# Name suffix of a float8 tensor's scale for each channel: the largest float8 is 448.
_SCALE = ".scale"
# Name suffix of a batch's subject, beside its features `0.middle_block.1`.
_SUBJECT = ".subject"
# Name suffix of the tensors of a batch's caching inputs, before the number of all but the first, and their own names.
_CACHING_INPUT = ".caching_input."
_CACHED_TENSORS = ("latent", "noise", "context", "pooled")

_LATENT_CHANNELS = 4
_MAX_REFERENCES = 1000
# Limits of what is read: far above what there can be, and low enough to compute with.
_MAX_SIDE = 65_536
_MAX_TIMESTEP = 1_000_000


class MissingTensorError(MalformedError):
    """A tensor that the header lists isn't there. The message is its name."""


def pack(
    references: ReferenceCache, layers: Sequence[TransformerLayer], precision: Precision
) -> tuple[Header, dict[str, torch.Tensor]]:
    """The header and the tensors of references, with these layers.

    Raises DreamCacheError if there are too many references, or if the features are too large for float16.
    """
    if len(references) > _MAX_REFERENCES:
        raise DreamCacheError(
            f"There are {len(references):,} references, but a file holds at most {_MAX_REFERENCES:,}: save fewer."
        )
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
    return header, tensors


def unpack(header: Fields, tensors: Tensors) -> ReferenceCache:
    """The references of a header and its tensors, which may be on the meta device.

    Raises MalformedError if either isn't what `pack` makes, and MissingTensorError if a tensor is missing.
    """
    layers, described = read_layers(header), header.objects("caches")
    sources = [fields.object("source") for fields in described if fields.has("source")]
    thumbnails = sum(len(source.items("thumbnails")) for source in sources)
    if not described or max(len(described), thumbnails) > _MAX_REFERENCES:
        raise MalformedError(f"there are no references, or more than {_MAX_REFERENCES}")
    batches = [
        _read_batch(fields, header.text("base_model"), layers, number, tensors)
        for number, fields in enumerate(described)
    ]
    return ReferenceCache(tuple(batches), header.flag("paired"))


def unpack_first_version(header: Fields, tensors: Tensors) -> ReferenceCache:
    """The same for the first version, whose header describes a single batch."""
    named = {f"0.{layer}": tensor for layer, tensor in tensors.items()}
    return ReferenceCache((_read_batch(header, header.text("base_model"), read_layers(header), 0, named),))


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


def _read_batch(
    fields: Fields, base_model: str, layers: tuple[TransformerLayer, ...], number: int, tensors: Tensors
) -> ReferenceBatch:
    size = fields.wholes("latent_size", _MAX_SIDE)
    if len(size) != 2 or not all(size):
        raise MalformedError("latent_size is not a height and a width")
    stored = {layer: _find(tensors, f"{number}.{layer.name}") for layer in layers}
    references = len(stored[layers[0]]) if stored[layers[0]].ndim else 0
    features = {}
    for layer, tensor in stored.items():
        _check_features(tensor, references, layer.channels, size)
        scale = tensors.get(f"{number}.{layer.name}{_SCALE}")
        if scale is not None:
            _check(scale, (references, layer.channels, 1, 1))
        elif tensor.dtype.itemsize == 1:
            raise MalformedError("float8 without a scale")
        features[layer.name] = _restore(tensor, scale)
    subject = tensors.get(f"{number}{_SUBJECT}")
    if subject is not None:
        _check(subject, (references, *size))
    strength = fields.number("strength", 1.0)
    if not strength:
        raise MalformedError("strength is 0")
    source = _read_source(fields.object("source"), references) if fields.has("source") else None
    return ReferenceBatch(
        features=features,
        base_model=base_model,
        layers=layers,
        latent_size=(size[0], size[1]),
        timestep=fields.whole("timestep", 0, _MAX_TIMESTEP),
        prompt=fields.text("prompt"),
        source=source,
        strength=strength,
        subject=subject,
        caching_inputs=tuple(_read_caching_inputs(fields, number, references, size, tensors)),
    )


def _read_caching_inputs(
    fields: Fields, number: int, references: int, size: tuple[int, ...], tensors: Tensors
) -> Iterator[CachingInput]:
    """None in a file of an earlier version of this project."""
    weights = fields.numbers("average_weights") if fields.has("average_weights") else (1.0,)
    for place, weight in enumerate(weights):
        prefix = _caching_input_prefix(number, place)
        latent, noise, context, pooled = (tensors.get(prefix + name) for name in _CACHED_TENSORS)
        if latent is not None and noise is not None and context is not None:
            for tensor in (latent, noise):
                _check(tensor, (*latent.shape[:1], _LATENT_CHANNELS, *size))
            # An average is one reference, of any number of them.
            if references > 1 and (len(latent) != references or len(weights) > 1):
                raise MalformedError("there are other caching inputs than references")
            _check(context, (1, *context.shape[1:3]))
            if pooled is not None:
                _check(pooled, (1, *pooled.shape[1:2]))
            if not weight:
                raise MalformedError("a weight in an average is 0")
            yield CachingInput(latent, noise, context, pooled, weight)


def _caching_input_prefix(number: int, place: int) -> str:
    return f"{number}{_CACHING_INPUT}{f'{place}.' if place else ''}"


def _read_source(fields: Fields, references: int) -> Source:
    thumbnails = read_thumbnails(fields)
    if thumbnails and len(thumbnails) < references:
        raise MalformedError("there are fewer thumbnails than references")
    return Source(
        base_hash=fields.text("base_hash"),
        patched=fields.flag("patched"),
        thumbnails=thumbnails,
        version=fields.text("version"),
    )


def _find(tensors: Tensors, name: str) -> torch.Tensor:
    if name not in tensors:
        raise MissingTensorError(name)
    return tensors[name]


def _check_features(tensor: torch.Tensor, references: int, channels: int, size: tuple[int, ...]) -> None:
    """Raise MalformedError unless a tensor is the features of a layer: no larger than the latent of this size."""
    height, width = tensor.shape[2:] if tensor.ndim == 4 else (0, 0)
    if height > size[0] or width > size[1]:
        raise MalformedError("features are larger than their latent")
    _check(tensor, (references, channels, height, width))


def _check(tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise MalformedError unless a tensor has this shape, is not empty and holds floating-point numbers."""
    if tensor.shape != shape or not tensor.numel() or not tensor.dtype.is_floating_point:
        raise MalformedError(f"a tensor of {tuple(tensor.shape)}, {tensor.dtype}, in place of {shape}")


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
    if scale is None:
        return stored
    if stored.is_meta:  # Arithmetic on the meta device makes PyTorch import half of itself, which takes seconds.
        return torch.empty_like(stored, dtype=torch.float16)
    return (stored.float() * scale).half()
