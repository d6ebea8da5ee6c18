"""Pickled tensors: `.pt` files as PyTorch writes them. No code in them is run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import torch

from ..errors import DreamCacheError
from .failures import reason
from .file_state import file_state


def read_pickle(path: Path) -> dict[str, torch.Tensor] | None:
    """Read plain tensors by name into memory, on the CPU; None if the file contains something else.

    Raises DreamCacheError if it is damaged, or if it names code.
    """
    damaged = f"{path.name} cannot be read because it is damaged or incomplete: download it again."
    try:
        with path.open("rb") as file:
            before = file_state(file.fileno())
            content = file.read()
            if file_state(file.fileno()) != before:
                raise DreamCacheError(f"{path.name} changed while it was read: start again when it is complete.")
    except OSError as error:
        raise DreamCacheError(f"{path.name} cannot be read: {reason(error)}.") from error
    if _is_inflated(content):
        raise DreamCacheError(damaged)
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DreamCacheError(
            f"{path.name} was not opened because it contains more than tensors, and such a file can run any program: "
            "use a file that contains only tensors, ideally a .safetensors."
        ) from error
    except Exception as error:  # A damaged pickle makes PyTorch raise almost any type.
        raise DreamCacheError(damaged) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and _is_plain(tensor) for name, tensor in tensors.items()
    ):
        return None
    # A view of a small storage may claim any size.
    if sum(tensor.nbytes for tensor in tensors.values()) > len(content):
        raise DreamCacheError(damaged)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _is_inflated(content: bytes) -> bool:
    """Whether a zip claims to hold more than its own bytes, as PyTorch, which compresses nothing, never writes one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            return sum(member.file_size for member in file.infolist()) > len(content)
    except Exception:  # Not a zip that can be read: PyTorch says so, or reads it as its older format.
        return False


def _is_plain(tensor: object) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )
