"""The disk cache of a training: a base model's encodings of images and prompts, which recur in every epoch."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import DreamCacheError
from .atomic import check_writable
from .failures import reason
from .json_fields import MalformedError
from .tensor_file import read_header, read_tensors, write_file

FILE_KIND = "encoding"
FILE_VERSION = 1


class DiskCache:
    """Tensors by key, each in a file of its own. `dtype`: of the files, float32 or float16.

    Several processes may share a folder, and may be killed at any time: files are written atomically, and damaged or
    foreign ones are replaced. What is made now is rounded like what is read, so that a full and an empty cache give
    the same. Raises DreamCacheError if the folder can't be written to.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        check_writable(folder)
        self._folder = folder
        self._dtype = dtype

    def get(
        self,
        keys: Sequence[str | None],
        shapes: Sequence[Sequence[int | None]],
        make: Callable[[Sequence[int]], Sequence[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """The tensor of each key, float32, on any device: read from the cache, or else made and added to it.

        A tensor whose key is None is always made and never added. `shapes`: of each tensor, None for any length; a file
        with another shape holds something else. `make`: returns the tensors at these indices of `keys`.
        Raises DreamCacheError if a tensor can't be written.
        """
        read = {index: self._read(key, shapes[index]) for index, key in enumerate(keys) if key}
        found = {index: self._narrow(tensor).float() for index, tensor in read.items() if tensor is not None}
        missing = [index for index in range(len(keys)) if index not in found]
        for index, tensor in zip(missing, make(missing) if missing else (), strict=True):
            found[index] = tensor
            key = keys[index]
            # What isn't finite, a broken VAE has made: with another precision it may work.
            if key and tensor.isfinite().all():
                narrow = self._narrow(tensor)
                found[index] = narrow.float()
                self._write(key, narrow.cpu())
        return [found[index] for index in range(len(keys))]

    def _narrow(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as its file holds it: float32 if it exceeds the range of float16."""
        narrow = tensor.to(self._dtype)
        return narrow if narrow.isfinite().all() else tensor

    def _read(self, key: str, shape: Sequence[int | None]) -> torch.Tensor | None:
        """None if there is no file, or one that can't be used."""
        path = self._path(key)
        try:
            metadata, tensors = read_tensors(path)
            header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
            tensor = tensors["encoding"]
            if header is None or tensor.dtype not in (torch.float32, self._dtype) or not tensor.isfinite().all():
                return None
            # Earlier versions wrote no checksum.
            checksum = _checksum(tensor)
            if header.whole("checksum", 0, 2**32 - 1, default=checksum) != checksum:
                return None
        except (DreamCacheError, KeyError, MalformedError):
            return None
        fits = len(tensor.shape) == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, tensor.shape, strict=True)
        )
        return tensor if fits else None

    def _write(self, key: str, tensor: torch.Tensor) -> None:
        try:
            header = {"checksum": _checksum(tensor)}
            write_file(self._path(key), FILE_KIND, FILE_VERSION, header, {"encoding": tensor})
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


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().data)
