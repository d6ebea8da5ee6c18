"""The disk cache of a training: a base model's encodings of images and prompts, which recur in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import DreamCacheError
from .atomic import check_writable
from .failures import reason
from .tensor_file import read_tensors, write_file

FILE_KIND = "encoding"
FILE_VERSION = 1


class DiskCache:
    """Tensors by key, each in a file of its own.

    Several processes may share a folder, and may be killed at any time: files are written atomically, and damaged ones
    are replaced. Raises DreamCacheError if the folder can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        check_writable(folder)
        self._folder = folder

    def get(
        self, keys: Sequence[str | None], make: Callable[[Sequence[int]], Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """The tensor of each key, on any device: read from the cache, or else made and added to it.

        A tensor whose key is None is always made and never added. `make`: returns the tensors at these indices of
        `keys`. Raises DreamCacheError if a tensor can't be written.
        """
        found = {index: tensor for index, key in enumerate(keys) if key and (tensor := self._read(key)) is not None}
        missing = [index for index in range(len(keys)) if index not in found]
        for index, tensor in zip(missing, make(missing) if missing else (), strict=True):
            found[index] = tensor
            if key := keys[index]:
                self._write(key, tensor)
        return [found[index] for index in range(len(keys))]

    def _read(self, key: str) -> torch.Tensor | None:
        try:
            return read_tensors(self._path(key))[1].get("encoding")
        except DreamCacheError:
            return None

    def _write(self, key: str, tensor: torch.Tensor) -> None:
        try:
            write_file(self._path(key), FILE_KIND, FILE_VERSION, {}, {"encoding": tensor})
        except OSError as error:
            raise DreamCacheError(
                f"{self._folder} cannot be written: {reason(error)}, or continue without --cache-latents."
            ) from error

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:3] / f"{name}.safetensors"


def fingerprint(image: torch.Tensor) -> str:
    """The SHA-256 of an image's bytes, in hexadecimal. `image`: any shape, on the CPU."""
    return hashlib.sha256(image.contiguous().numpy().data).hexdigest()
