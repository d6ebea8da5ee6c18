"""Adapter files: in this project's format (`.safetensors`), or in the paper authors' (`.safetensors` or pickled)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import DreamCacheError
from ..io.file_state import wait_until_settled
from ..io.finite import check_finite
from ..io.json_fields import Fields
from ..io.layers import check_layers, read_layers
from ..io.pickle_file import PickleFile, open_pickle
from ..io.tensor_file import TensorFile, Tensors, checked_header, open_tensors, read_header, write_file
from ..unet import TransformerLayer
from .network import Adapter, weight_shapes
from .provenance import Provenance

FILE_KIND = "adapter"
FILE_VERSION = 1

# Name of a tensor in the authors' format:
# `diffusion_model.output_blocks.4.1.transformer_blocks.0.attn_mem.to_q.weight`.
# Programs that trained a wrapped model have put `model.` or `module.` in front.
_AUTHORS_PREFIX = re.compile(r"^(?:(?:model|module)\.)*(?:diffusion_model\.)?")
_AUTHORS_BLOCK = ".transformer_blocks.0."
_AUTHORS_NAMES = {
    "norm2_mem": "norm_mem",
    "attn_mem.to_q": "to_q",
    "attn_mem.to_k": "to_k",
    "attn_mem.to_v": "to_v",
    "attn_mem.to_out.0": "to_out",
    "linear_cat": "linear_cat",
}
# The authors' format doesn't name the base model. They published an adapter for SD2.1, whose heads have 64 channels.
_AUTHORS_BASE_MODEL = "SD2.x"
_AUTHORS_HEAD_CHANNELS = 64

# Characters of a name, which may be of any length, in a sentence.
_SHOWN = 100

_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}
SUFFIXES = frozenset({".safetensors", *_PICKLED})


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """The content of an adapter file. `format`: of the file, in words."""

    adapter: Adapter
    format: str

    @property
    def description(self) -> str:
        """The content in a few lines, for the person at the graph."""
        adapter = self.adapter
        names = ", ".join(layer.name for layer in adapter.layers)
        lines = [f"{self.format}, for {adapter.base_model}, {adapter.parameter_count:,} parameters", f"layers: {names}"]
        return "\n".join([*lines, *(training.description for training in adapter.provenance)])


def save_adapter(
    path: Path, adapter: Adapter, precision: torch.dtype | None = None, notes: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter in this project's format, with its provenance.

    `precision`: of the weights in the file; None keeps theirs. `notes`: more entries for the header, as JSON.
    Raises OSError if the file can't be written.
    """
    header = {
        **(notes or {}),
        "base_model": adapter.base_model,
        "layers": [layer.to_json() for layer in adapter.layers],
        "provenance": [training.to_json() for training in adapter.provenance],
    }
    tensors = {name: tensor.to(precision or tensor.dtype) for name, tensor in adapter.state_dict().items()}
    write_file(path, FILE_KIND, FILE_VERSION, header, tensors)


def load_adapter(path: Path, operations: Any = nn) -> AdapterFile:
    """Load an adapter in the precision of its file, on the CPU, without gradients.

    `operations`: the module that AdapterLayer takes `Linear` and `LayerNorm` from. Raises DreamCacheError for a file
    that is missing, damaged or no adapter, and for a pickle that holds anything but tensors; no code in it is run.
    """
    if not path.is_file():
        raise DreamCacheError(f"{path} does not exist: put adapters into ComfyUI's models/dreamcache folder.")
    wait_until_settled(path)
    with _open(path) as file:
        # First, so that no other file, of gigabytes perhaps, is read.
        contents, tensors = _interpret(path, file.metadata, file.tensors), file.read()
    for name, tensor in tensors.items():
        check_finite(tensor, f"The weight {name} of {path.name}", "download the adapter again, or train it again")
    # On the meta device, so that no weights are initialized only to be replaced by those of the file.
    with torch.device("meta"):
        adapter = Adapter(contents.layers, contents.base_model, operations, contents.provenance)
    adapter.load_state_dict({contents.names[name]: tensor for name, tensor in tensors.items()}, assign=True)
    return AdapterFile(adapter.requires_grad_(False).eval(), contents.format)


@dataclass(frozen=True)
class AdapterDescription:
    """What an adapter file's header says. The fields are the keys of its JSON.

    `size`: in bytes. `format`: in words. `base_model`: the family it was trained for. `layers`: their names.
    `parameters`: their number. `provenance`: a sentence for each training. `problem`: why the file can't be used, None
    if it can. Other fields are None if they aren't known.
    """

    size: int
    format: str | None = None
    base_model: str | None = None
    layers: tuple[str, ...] | None = None
    parameters: int | None = None
    provenance: tuple[str, ...] | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}


def describe_adapter(path: Path) -> AdapterDescription:
    """Describe an adapter file by its header, without reading weights."""
    try:
        size = path.stat().st_size
    except OSError:
        return AdapterDescription(0, problem=f"{path} does not exist.")
    try:
        with _open(path) as file:
            contents = _interpret(path, file.metadata, file.tensors)
    except DreamCacheError as error:
        return AdapterDescription(size, problem=str(error))
    return AdapterDescription(
        size,
        contents.format,
        contents.base_model,
        tuple(layer.name for layer in contents.layers),
        sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        tuple(training.description for training in contents.provenance),
    )


@dataclass(frozen=True)
class _Contents:
    """What a file contains, weights apart. `names`: name of a tensor in the file → its name in the Adapter's state."""

    format: str
    base_model: str
    layers: tuple[TransformerLayer, ...]
    names: Mapping[str, str]
    provenance: tuple[Provenance, ...] = ()


def _open(path: Path) -> AbstractContextManager[TensorFile | PickleFile]:
    return open_pickle(path) if path.suffix.lower() in _PICKLED else open_tensors(path)


def _interpret(path: Path, metadata: Mapping[str, str], tensors: Tensors) -> _Contents:
    """Interpret a file in either format. Raises DreamCacheError unless its tensors are exactly those of an adapter."""
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    contents = _authors_contents(path, tensors) if header is None else _own_contents(path, header, tensors)
    shapes = {contents.names[name]: tensor.shape for name, tensor in tensors.items()}
    if len(shapes) != len(tensors) or shapes != _expected_shapes(contents.layers):
        raise DreamCacheError(f"{path.name} has missing or unexpected weights: download it again.")
    if not all(tensor.dtype and tensor.dtype.is_floating_point for tensor in tensors.values()):
        raise DreamCacheError(f"{path.name} has weights that are not floating-point numbers: download it again.")
    return contents


@lru_cache
def _expected_shapes(layers: tuple[TransformerLayer, ...]) -> Mapping[str, tuple[int, ...]]:
    return {f"{layer.name}.{name}": shape for layer in layers for name, shape in weight_shapes(layer.channels).items()}


def _own_contents(path: Path, header: Fields, tensors: Tensors) -> _Contents:
    """The contents of a file in this project's format."""
    with checked_header(path):
        return _Contents(
            "DreamCache adapter",
            header.text("base_model"),
            read_layers(header),
            {name: name for name in tensors},
            tuple(map(Provenance.from_json, header.objects("provenance") if header.has("provenance") else ())),
        )


def _authors_contents(path: Path, tensors: Tensors) -> _Contents:
    """The contents of a file in the authors' format, which has no header."""
    names = {name: _own_name(path, name) for name in tensors}
    if not names:
        raise DreamCacheError(f"{path.name} contains no tensors: download it again.")
    channels = {
        own.removesuffix(".to_q.weight"): tensors[name].shape[0]
        for name, own in names.items()
        if own.endswith(".to_q.weight") and tensors[name].shape
    }
    layers = [TransformerLayer(layer, width, width // _AUTHORS_HEAD_CHANNELS) for layer, width in channels.items()]
    with checked_header(path):
        return _Contents("the authors' DreamCache adapter", _AUTHORS_BASE_MODEL, check_layers(layers), names)


def _own_name(path: Path, name: str) -> str:
    """The name in the Adapter's state of a tensor in the authors' format."""
    layer, found, rest = _AUTHORS_PREFIX.sub("", name).partition(_AUTHORS_BLOCK)
    part, _, parameter = rest.rpartition(".")
    if not found or part not in _AUTHORS_NAMES:
        raise DreamCacheError(f"{path.name} is {_guess_kind(name)}, not a DreamCache adapter: {_ADVICE}")
    return f"{layer}.{_AUTHORS_NAMES[part]}.{parameter}"


_ADVICE = "choose a DreamCache adapter, and load other files with their own nodes."


def _guess_kind(name: str) -> str:
    """What kind of file this is, in words, by the name of one of its tensors."""
    if "lora" in name or name.endswith(".alpha"):
        return "a LoRA (load it with Load LoRA)"
    if name.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")):
        return "a checkpoint (load it with Load Checkpoint)"
    return f"another kind of file (it contains `{name[:_SHOWN]}`)"
