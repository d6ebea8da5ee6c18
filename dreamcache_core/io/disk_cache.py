"""A cache on disk of what a base model makes of pictures and prompts, for those that come again in later epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import DreamCacheError
from .tensor_file import read_tensors, write_file

FILE_KIND = "encoding"
FILE_VERSION = 1


class DiskCache:
    """Tensors by their keys, a file for each. Any number of processes may use a folder at once, and be killed there:
    a file is written whole or not at all, and one that is damaged is written anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, keys: Sequence[str | None], make: Callable[[Sequence[int]], Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """A tensor for each key, on whatever device: found, or made and kept, or only made for a key of None.

        `make`: gives those of the numbers that it is given. Raises DreamCacheError if they can't be written.
        """
        found = {number: tensor for number, key in enumerate(keys) if key and (tensor := self._read(key)) is not None}
        missing = [number for number in range(len(keys)) if number not in found]
        for number, tensor in zip(missing, make(missing) if missing else (), strict=True):
            found[number] = tensor
            if key := keys[number]:
                self._write(key, tensor)
        return [found[number] for number in range(len(keys))]

    def _read(self, key: str) -> torch.Tensor | None:
        try:
            return read_tensors(self._path(key))[1]["encoding"]
        except DreamCacheError:
            return None

    def _write(self, key: str, tensor: torch.Tensor) -> None:
        try:
            write_file(self._path(key), FILE_KIND, FILE_VERSION, {}, {"encoding": tensor})
        except OSError as error:
            raise DreamCacheError(
                f"Cannot write to {self._folder}: {error.strerror}; free some space, or continue without "
                "--cache-latents."
            ) from error

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:3] / f"{name}.safetensors"


def fingerprint(picture: torch.Tensor) -> str:
    """Of all its bytes; a picture on the CPU."""
    return hashlib.sha256(picture.contiguous().numpy().data).hexdigest()
