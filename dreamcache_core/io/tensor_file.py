"""`.safetensors` files with a versioned header: the format of adapters, reference caches and cached encodings.

A file is read into memory, never mapped: a mapped file that another program cuts short ends the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import save

from ..errors import DreamCacheError
from .atomic import write_atomically
from .failures import reading, reason
from .file_state import file_state
from .json_fields import Fields, MalformedError, is_unicode, parse_json

# The JSON object in a file's metadata: {"format": "dreamcache.adapter", "version": "1", "header": <JSON object>}.
Header = dict[str, Any]

MAX_HEADER = 16_000_000
"""Bytes of a header that is read. Parsed, a header takes up to forty times its size in memory."""
_MAX_SIZE = 2**62
_FORMAT = re.compile(r"dreamcache\.[a-z_ ]{1,40}")

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class TensorInfo(NamedTuple):
    """What a file says of a tensor before it is read. `dtype`: None for one that isn't read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    # The place of its bytes in the file.
    start: int = 0
    end: int = 0


Tensors = Mapping[str, TensorInfo]
"""By the names of the tensors."""


def write_file(path: Path, kind: str, version: int, header: Header, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors and a header of the format `dreamcache.<kind>`, atomically.

    Raises OSError if that fails, and DreamCacheError if the header is larger than what is read.
    """
    metadata = {"format": f"dreamcache.{kind}", "version": str(version), "header": json.dumps(header)}
    if len(metadata["header"]) > MAX_HEADER // 2:  # The rest is for the tensors' names, and for escapes in JSON.
        raise DreamCacheError(f"{path.name} would have a header of more than {MAX_HEADER / 2e6:.0f} MB: save fewer.")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not safetensors' `save_file`, whose files only their owner may read.
    write_atomically(path, save(contiguous, metadata))


class TensorFile:
    """An open `.safetensors` file whose header has been checked. `metadata`: its texts. `tensors`: what it holds."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read the header. Raises MalformedError if it isn't what the format says, and OSError."""
        self._path, self._file = path, file
        self._state = file_state(file.fileno())
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise MalformedError(f"a header of more than {MAX_HEADER} bytes")
        table = parse_json(file.read(length))
        self.metadata = _read_metadata(table)
        self.tensors: Tensors = {name: _read_info(entry, 8 + length) for name, entry in table.items()}
        end = 8 + length
        for tensor in sorted(self.tensors.values(), key=lambda tensor: tensor[2:]):
            if tensor.start != end:
                raise MalformedError("tensors overlap, or there is something between them")
            end = tensor.end
        if end != self._state.size:
            raise MalformedError("the tensors don't end where the file does")

    def read(self) -> dict[str, torch.Tensor]:
        """Read all tensors into memory, on the CPU.

        Raises DreamCacheError if a tensor's type isn't read, or if the file changed meanwhile.
        """
        tensors = {name: self._read(name) for name in self.tensors}
        if file_state(self._file.fileno()) != self._state:
            raise DreamCacheError(f"{self._path.name} changed while it was read: start again when it is complete.")
        return tensors

    def shells(self) -> dict[str, torch.Tensor]:
        """All tensors without values, on the meta device. Raises DreamCacheError if a tensor's type isn't read."""
        return {name: self._empty(name, "meta") for name in self.tensors}

    def _empty(self, name: str, device: str) -> torch.Tensor:
        dtype = self.tensors[name].dtype
        if dtype is None:
            raise DreamCacheError(f"{self._path.name} has weights of a type that DreamCache does not read: convert it.")
        return torch.empty(self.tensors[name].shape, dtype=dtype, device=device)

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._empty(name, "cpu")
        _, _, start, end = self.tensors[name]
        place = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(start)
        while start < end:
            count = self._file.readinto(place[-(end - start) :])  # type: ignore[attr-defined]
            if not count:
                raise MalformedError("the file was cut short")
            start += count
        return tensor


@contextmanager
def open_binary(path: Path, kind: str = "") -> Iterator[BinaryIO]:
    """Open a file of tensors. Raises DreamCacheError if it is missing, damaged (MalformedError) or can't be read.

    `kind`: what it is to be read as, for the message: ` as .safetensors`.
    """
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DreamCacheError(f"{path} does not exist.") from None
    except MalformedError as error:
        raise DreamCacheError(
            f"{path.name} cannot be read{kind} because it is damaged or incomplete: download it again."
        ) from error
    except OSError as error:
        raise DreamCacheError(f"{path.name} cannot be read: {reason(error)}.") from error


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open any `.safetensors` file. Raises DreamCacheError if it is missing, damaged or of another format."""
    with open_binary(path, " as .safetensors") as file:
        yield TensorFile(path, file)


def read_tensors(path: Path) -> tuple[Mapping[str, str], dict[str, torch.Tensor]]:
    """Read the metadata and the tensors of any `.safetensors` file. Raises DreamCacheError as `open_tensors` does."""
    with open_tensors(path) as file:
        return file.metadata, file.read()


def read_header(path: Path, kind: str, version: int, metadata: Mapping[str, str]) -> Fields | None:
    """Parse the header in a file's metadata; None if the file isn't in a DreamCache format.

    `kind`: of file, such as `adapter`. `version`: the newest file version that can be read. Raises DreamCacheError for
    another kind of DreamCache file, a newer file version or a damaged header.
    """
    found = metadata.get("format", "")
    if not found.startswith("dreamcache."):
        return None
    with checked_header(path):
        if not _FORMAT.fullmatch(found):
            raise MalformedError("the format has no name")
        if found != f"dreamcache.{kind}":
            other = found.removeprefix("dreamcache.")
            raise DreamCacheError(f"{path.name} is a {other} file, not a DreamCache {kind}.")
        found_version = file_version(metadata)
        if found_version > version:
            raise DreamCacheError(
                f"{path.name} was written by a newer DreamCache (file version {found_version}, this one reads up to "
                f"{version}): update the DreamCache nodes."
            )
        return Fields(parse_json(metadata.get("header", "")))


def file_version(metadata: Mapping[str, str]) -> int:
    """The version of a DreamCache format. Raises MalformedError if there is none."""
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise MalformedError("version is not a whole number")
    return int(version)


@contextmanager
def checked_header(path: Path) -> Iterator[None]:
    """Turn MalformedError into the DreamCacheError of a damaged header."""
    try:
        yield
    except MalformedError as error:
        raise DreamCacheError(f"{path.name} has a damaged header: download it again.") from error


def name_and_hash(path: Path) -> str:
    """A file's name with the first 12 hexadecimal digits of its SHA-256, by which model sites list files.

    Raises DreamCacheError if the file can't be read.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return f"{path.name} ({digest.hexdigest()[:12]})"


def _read_metadata(table: Any) -> dict[str, str]:
    """Take the metadata out of the JSON of a file's header."""
    if not isinstance(table, dict):
        raise MalformedError("not an object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("the metadata aren't texts")
    if not all(name.isascii() or is_unicode(name) for name in table):
        raise MalformedError("a tensor's name is not a text")
    return metadata


def _read_info(entry: Any, data: int) -> TensorInfo:
    """A tensor's entry in the JSON of a file's header. `data`: where the bytes of all tensors begin."""
    fields = Fields(entry)
    shape, offsets = fields.wholes("shape", _MAX_SIZE), fields.wholes("data_offsets", _MAX_SIZE)
    dtype = _DTYPES.get(fields.text("dtype"))
    # Of other types only PyTorch's successors know the size.
    if len(offsets) != 2 or (dtype and offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize):
        raise MalformedError("a tensor has another size than its shape")
    return TensorInfo(shape, dtype, data + offsets[0], data + offsets[1])
