"""`.safetensors` files with a versioned header: the format of adapters, reference caches and cached encodings."""

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

# The JSON object in a file's metadata: {"format": "dreamcache.adapter", "version": "1", "header": <JSON object>}.
Header = dict[str, Any]
# Name of a tensor → its shape.
Shapes = Mapping[str, tuple[int, ...]]

# The safetensors format's limit for the header, in bytes.
_MAX_HEADER = 100_000_000
# What a malformed header can raise when it is parsed.
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def write_file(path: Path, kind: str, version: int, header: Header, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors and a header of the format `dreamcache.<kind>`, atomically. Raises OSError if that fails."""
    metadata = {"format": f"dreamcache.{kind}", "version": str(version), "header": json.dumps(header)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not safetensors' `save_file`, whose files only their owner may read.
    write_atomically(path, save(contiguous, metadata))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read the metadata and the tensors of any `.safetensors` file. Tensors are on the CPU.

    Raises DreamCacheError if the file is missing, damaged or of another format.
    """
    with _clear_errors(path), safe_open(path, framework="pt", device="cpu") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}


def read_shapes(path: Path) -> tuple[dict[str, str], Shapes]:
    """Read the metadata and the tensors' shapes of any `.safetensors` file, from its header alone.

    Raises DreamCacheError if the file is missing, damaged or of another format.
    """
    # Not `safe_open`, which is slower: a folder may hold a thousand files.
    with _clear_errors(path), path.open("rb") as file:
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
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what reading a `.safetensors` file can raise into a DreamCacheError."""
    try:
        yield
    except FileNotFoundError:
        raise DreamCacheError(f"{path} does not exist.") from None
    except (SafetensorError, OSError, *_MALFORMED) as error:
        raise DreamCacheError(
            f"{path.name} cannot be read as .safetensors because it is damaged or incomplete: download it again."
        ) from error


def read_header(path: Path, kind: str, version: int, metadata: Mapping[str, str]) -> Header | None:
    """Parse the header in a file's metadata; None if the file isn't in a DreamCache format.

    `kind`: of file, such as `adapter`. `version`: the newest file version that can be read. Raises DreamCacheError for
    another kind of DreamCache file, a newer file version or a damaged header.
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
    """A file's name with the first 12 hexadecimal digits of its SHA-256, by which model sites list files.

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
