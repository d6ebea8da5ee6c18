"""Adapter files: this project's `.safetensors`, and the paper authors' pickled `.pt`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapter import Adapter
from .errors import DreamCacheError
from .files import read_header, read_tensors, write_file
from .layers import TransformerLayer
from .provenance import Provenance

FILE_KIND = "adapter"
FILE_VERSION = 1

# `diffusion_model.output_blocks.4.1.transformer_blocks.0.attn_mem.to_q.weight` in the authors' file.
_AUTHORS_PREFIX = "diffusion_model."
_AUTHORS_BLOCK = ".transformer_blocks.0."
_AUTHORS_NAMES = {
    "norm2_mem": "norm_mem",
    "attn_mem.to_q": "to_q",
    "attn_mem.to_k": "to_k",
    "attn_mem.to_v": "to_v",
    "attn_mem.to_out.0": "to_out",
    "linear_cat": "linear_cat",
}
# The authors' file names no base model. They published SD2.1, whose heads are 64 channels wide.
_AUTHORS_BASE_MODEL = "SD2.x"
_AUTHORS_HEAD_CHANNELS = 64

_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}
SUFFIXES = frozenset({".safetensors", *_PICKLED})


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """An adapter, and the format of the file that it came from, in words."""

    adapter: Adapter
    format: str

    @property
    def description(self) -> str:
        """What was found, in a few lines for the person at the graph."""
        adapter = self.adapter
        names = ", ".join(layer.name for layer in adapter.layers)
        lines = [f"{self.format}, for {adapter.base_model}, {adapter.parameter_count:,} parameters", f"layers: {names}"]
        return "\n".join([*lines, *(training.description for training in adapter.provenance)])


def save_adapter(path: Path, adapter: Adapter, precision: torch.dtype | None = None) -> None:
    """Write an adapter in this project's format, with its provenance; in the precision it has, or in another."""
    header = {
        "base_model": adapter.base_model,
        "layers": [layer.to_json() for layer in adapter.layers],
        "provenance": [training.to_json() for training in adapter.provenance],
    }
    tensors = {name: tensor.to(precision or tensor.dtype) for name, tensor in adapter.state_dict().items()}
    write_file(path, FILE_KIND, FILE_VERSION, header, tensors)


def load_adapter(path: Path, operations: Any = nn) -> AdapterFile:
    """Read an adapter, in the precision it has on disk.

    `operations`: as in AdapterLayer. Raises DreamCacheError for a file that is missing, damaged, or no adapter, and for
    a pickle that holds anything but tensors, of which nothing is run.
    """
    if not path.is_file():
        raise DreamCacheError(f"{path} is not there: put adapters into ComfyUI's models/dreamcache folder.")
    if path.suffix in _PICKLED:
        metadata: Mapping[str, str] = {}
        tensors = _read_pickle(path)
    else:
        metadata, tensors = read_tensors(path)
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    if header is not None:
        layers = tuple(TransformerLayer(**layer) for layer in header["layers"])
        adapter = _build(path, layers, header["base_model"], tensors, operations)
        adapter.provenance = tuple(map(Provenance.from_json, header.get("provenance", ())))
        return AdapterFile(adapter, "DreamCache adapter")
    tensors = _from_authors(path, tensors)
    layers = tuple(
        TransformerLayer(
            name.removesuffix(".to_q.weight"), tensor.shape[0], heads=tensor.shape[0] // _AUTHORS_HEAD_CHANNELS
        )
        for name, tensor in tensors.items()
        if name.endswith(".to_q.weight")
    )
    return AdapterFile(
        _build(path, layers, _AUTHORS_BASE_MODEL, tensors, operations), "the authors' DreamCache adapter"
    )


def _build(
    path: Path,
    layers: tuple[TransformerLayer, ...],
    base_model: str,
    tensors: Mapping[str, torch.Tensor],
    operations: Any,
) -> Adapter:
    # On the meta device, because the file brings the weights: nothing is drawn at random only to be replaced.
    with torch.device("meta"):
        adapter = Adapter(layers, base_model, operations)
    expected = {name: tensor.shape for name, tensor in adapter.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise DreamCacheError(f"{path.name} lacks some of its adapter's weights or has others: download it again.")
    adapter.load_state_dict(dict(tensors), assign=True)
    return adapter.requires_grad_(False).eval()


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DreamCacheError(
            f"{path.name} holds something other than tensors, so it was not opened, for a pickle can run any program: "
            "use a file that holds tensors only, best a .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DreamCacheError(f"{path.name} cannot be read: it is damaged or incomplete, download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DreamCacheError(f"{path.name} is not a DreamCache adapter: {_ADVICE}")
    return content


_ADVICE = "choose a DreamCache adapter, and load other files with their own nodes."


def _from_authors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        layer, found, rest = key.removeprefix(_AUTHORS_PREFIX).partition(_AUTHORS_BLOCK)
        name, _, parameter = rest.rpartition(".")
        if not found or name not in _AUTHORS_NAMES:
            raise DreamCacheError(f"{path.name} is {_guess(key)}, not a DreamCache adapter: {_ADVICE}")
        renamed[f"{layer}.{_AUTHORS_NAMES[name]}.{parameter}"] = tensor
    if not renamed:
        raise DreamCacheError(f"{path.name} holds no tensors: download it again.")
    return renamed


def _guess(key: str) -> str:
    if "lora" in key or key.endswith(".alpha"):
        return "a LoRA (load it with Load LoRA)"
    if key.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")):
        return "a whole checkpoint (load it with Load Checkpoint)"
    return f"another kind of file (it holds `{key}`)"
