"""`.safetensors` files with a versioned header: the format of adapters, reference caches and encodings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import DreamCacheError
from .atomic import write_atomically

# Metadata of a file: {"format": "dreamcache.adapter", "version": "1", "header": <JSON object>}.
Header = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors, by their names."""

_MAX_HEADER = 100_000_000
"""In bytes, as the format has it."""
# What a header of another form than the format's leads to.
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def write_file(path: Path, kind: str, version: int, header: Header, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` under a `dreamcache.<kind>` header, atomically."""
    metadata = {"format": f"dreamcache.{kind}", "version": str(version), "header": json.dumps(header)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not by safetensors' own `save_file`, whose files nobody but their owner may read.
    write_atomically(path, save(contiguous, metadata))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors (on the CPU) of any `.safetensors` file.

    Raises DreamCacheError if the file is missing, truncated or something else.
    """
    with _opened(path) as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}


def read_shapes(path: Path) -> tuple[dict[str, str], Shapes]:
    """Metadata and the tensors' shapes of any `.safetensors` file, of which nothing but its header is read.

    Raises DreamCacheError as `read_tensors` does.
    """
    # Not by `safe_open`, which takes longer: folders may hold a thousand of them.
    with _reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError("no header is so long")
        tensors = json.loads(file.read(length))
        metadata = tensors.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if 8 + length + end != file.seek(0, os.SEEK_END):
            raise ValueError("tensors end where the file does")
        return metadata, {name: tuple(map(int, tensor["shape"])) for name, tensor in tensors.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _reading(path), safe_open(path, framework="pt", device="cpu") as file:
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong in it, in words."""
    try:
        yield
    except FileNotFoundError:
        raise DreamCacheError(f"{path} does not exist.") from None
    except (SafetensorError, OSError, *_MALFORMED) as error:
        raise DreamCacheError(
            f"{path.name} cannot be read as .safetensors because it is damaged or incomplete: download it again."
        ) from error


def read_header(path: Path, kind: str, version: int, metadata: Mapping[str, str]) -> Header | None:
    """The header of a file of this kind, or None if the file isn't this project's.

    Raises DreamCacheError for another kind of DreamCache file, one written by a newer version, or a damaged header.
    """
    found = metadata.get("format", "")
    if not found.startswith("dreamcache."):
        return None
    if found != f"dreamcache.{kind}":
        raise DreamCacheError(f"{path.name} is a {found.removeprefix('dreamcache.')} file, not a DreamCache {kind}.")
    try:
        found_version, header = int(metadata["version"]), json.loads(metadata["header"])
    except (KeyError, ValueError) as error:
        raise DreamCacheError(f"{path.name} has a damaged header: download it again.") from error
    if found_version > version:
        raise DreamCacheError(
            f"{path.name} was written by a newer DreamCache (file version {found_version}, this one reads up to "
            f"{version}): update the DreamCache nodes."
        )
    return header


def name_and_hash(path: Path) -> str:
    """A file's name, and the beginning of its SHA-256 in hexadecimal, as model sites show it.

    Raises DreamCacheError if the file is missing.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except FileNotFoundError:
        raise DreamCacheError(f"{path} does not exist.") from None
    return f"{path.name} ({digest.hexdigest()[:12]})"
