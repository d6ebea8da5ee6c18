"""Pickled tensors: `.pt` files as PyTorch writes them, in a zip, or as before version 1.6. No code in them is run.

Not PyTorch's own reader, which reads gigabytes before it says what they are, can't tell a damaged file from one that
means harm, and of some versions can be made to run code.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..errors import DreamCacheError
from .file_state import file_state
from .json_fields import MalformedError, is_unicode
from .tensor_file import TensorInfo, Tensors, open_binary

_MAX_PICKLE = 2_000_000
"""Bytes of the pickle that says what a file holds: several times what the largest checkpoint needs."""
_MAX_SIZE = 2**62
_ZIP = b"PK\3\4"
# What a file of before version 1.6 begins with.
_MAGIC = 0x1950A86A20F9469CFC6C

_REBUILD = "torch._utils._rebuild_"
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_ATTRIBUTES: Mapping[str, Any] = {
    str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype | torch.qscheme)
}
# What files name that hold tensors of any kind: PyTorch's `weights_only` allows it too.
_HARMLESS = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
        *("torch.Size", "torch.device", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"),
        *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.storage.TypedStorage"),
        *_STORAGES,
        *_ATTRIBUTES,
    }
)


class PickleFile:
    """An open file whose pickle has been checked, like a TensorFile. `tensors`: what it holds."""

    metadata: Mapping[str, str] = {}
    """A pickle has none."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read the pickle. Raises DreamCacheError if it names code or holds other things than tensors, and
        MalformedError if it is damaged.
        """
        self._path, self._file = path, file
        self._state = file_state(file.fileno())
        with _damage():
            content, self._read_storage = _open_zip(file) if _is_zip(file) else _open_old(file)
            if not _is_all_tensors(content):
                raise DreamCacheError(
                    f"{path.name} contains other things than tensors: choose a file of nothing but weights."
                )
            # Not `content.items()`, which the pickle may have replaced.
            self._tensors: dict[str, _Tensor] = dict(dict.items(content))
            self.tensors: Tensors = {name: tensor.check() for name, tensor in self._tensors.items()}
            # A view of a small storage may claim any size.
            if sum(tensor.size for tensor in self._tensors.values()) > self._state.size:
                raise MalformedError("the tensors are larger than the file")

    def read(self) -> dict[str, torch.Tensor]:
        """Read all tensors into memory, on the CPU. Raises DreamCacheError if the file changed meanwhile."""
        with _damage():
            storages = {tensor.storage.key: tensor.storage for tensor in self._tensors.values()}
            contents = {key: self._read_storage(storage) for key, storage in storages.items()}
        if file_state(self._file.fileno()) != self._state:
            raise DreamCacheError(f"{self._path.name} changed while it was read: start again when it is complete.")
        return {name: tensor.view(contents[tensor.storage.key]) for name, tensor in self._tensors.items()}


@contextmanager
def open_pickle(path: Path) -> Iterator[PickleFile]:
    """Open a pickle of tensors by name.

    Raises DreamCacheError if it is missing or damaged, names code, or holds other things than tensors.
    """
    try:
        with open_binary(path) as file:
            yield PickleFile(path, file)
    except _CodeError as error:
        raise DreamCacheError(
            f"{path.name} was not opened because it contains more than tensors, and such a file can run any program: "
            "use a file that contains only tensors, ideally a .safetensors."
        ) from error


class _CodeError(Exception):
    """A pickle names something that isn't part of a tensor, and that PyTorch would call."""


class _Storage(NamedTuple):
    """Some bytes of a file. `key`: their name. `length`: how many numbers of this type."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.length * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A tensor before it is read. All but `dtype` is as the pickle says, whatever that is."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes, when it is read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self) -> TensorInfo:
        """Raise MalformedError unless there can be such a tensor in such a storage."""
        if type(self.storage) is not _Storage:
            raise MalformedError("a tensor has no storage")
        if not (_are_sizes(self.shape) and _are_sizes(self.stride) and _are_sizes((self.offset,))):
            raise MalformedError("a tensor's shape is not one")
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if all(self.shape) and (self.offset + last + 1) * self.dtype.itemsize > self.storage.size:
            raise MalformedError("a tensor is larger than its storage")
        return TensorInfo(self.shape, self.dtype)

    def view(self, content: bytearray) -> torch.Tensor:
        """The tensor. `content`: of its storage."""
        if not all(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype).as_strided(self.shape, self.stride, self.offset).contiguous()


class _Named(NamedTuple):
    """Stands in a pickle for what it names. Called, it gives what describes a tensor, and otherwise itself."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "collections.OrderedDict":
            return OrderedDict(*arguments)
        if self.name in (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state"):
            return arguments[0]
        if self.name in (f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2"):
            storage, offset, shape, stride, *_ = arguments
            return _Tensor(storage, storage.dtype, offset, shape, stride) if type(storage) is _Storage else self
        if self.name == f"{_REBUILD}tensor_v3":
            storage, offset, shape, stride, _, _, dtype, *_ = arguments
            return _Tensor(storage, _ATTRIBUTES[dtype.name], offset, shape, stride)
        return self


class _Unpickler(pickle.Unpickler):
    """Makes descriptions of tensors, texts, numbers and lists, and nothing else. `storages`: those it came across."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> _Named:
        full = f"{module}.{name}"
        is_storage = module == "torch" and name.endswith("Storage")
        if not (is_storage or full.startswith(_REBUILD) or full in _HARMLESS):
            raise _CodeError(full)
        # A new one each time, since a pickle can set attributes of what it names.
        return _Named(full)

    def persistent_load(self, identity: Any) -> Any:
        kind, storage_type, key, _, length, *view = identity
        if kind != "storage" or not isinstance(key, str) or not _are_sizes((length,)) or any(view):
            raise MalformedError("a storage is not one")
        if storage_type.name not in _STORAGES:
            return storage_type
        storage = _Storage(key, _STORAGES[storage_type.name], length)
        return self.storages.setdefault(key, storage)


def _is_zip(file: BinaryIO) -> bool:
    start = file.read(len(_ZIP))
    file.seek(0)
    return start == _ZIP


def _open_zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytearray]]:
    """What a zip's pickle describes, and how to read its storages."""
    archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    # PyTorch compresses nothing.
    if sum(member.file_size for member in archive.infolist()) > file_state(file.fileno()).size:
        raise MalformedError("the zip holds more than its own bytes")
    (name,) = (name for name in members if name.count("/") == 1 and name.endswith("/data.pkl"))
    folder = name.removesuffix("data.pkl")
    if members[name].file_size > _MAX_PICKLE:
        raise MalformedError("the pickle is too large")
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise MalformedError("numbers in an order of bytes that isn't read")
    content, storages = _unpickle(io.BytesIO(archive.read(name)))
    for storage in storages.values():
        if members[f"{folder}data/{storage.key}"].file_size != storage.size:
            raise MalformedError("a storage has another size than its type and length say")
    return content, lambda storage: bytearray(archive.read(f"{folder}data/{storage.key}"))


def _open_old(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytearray]]:
    """What a file of before version 1.6 describes, and how to read its storages."""
    pickles = io.BytesIO(file.read(_MAX_PICKLE))
    start, _ = _unpickle(pickles)
    if start != _MAGIC:
        return start, lambda storage: bytearray()
    _unpickle(pickles)
    system, _ = _unpickle(pickles)
    if not system["little_endian"]:
        raise MalformedError("numbers in an order of bytes that isn't read")
    content, storages = _unpickle(pickles)
    keys, _ = _unpickle(pickles)
    # After the pickles come the storages, each after its length.
    places, place = {}, pickles.tell()
    for key in keys:
        file.seek(place)
        if int.from_bytes(file.read(8), "little") != storages[key].length:
            raise MalformedError("a storage has another length than the pickle says")
        places[key] = place + 8
        place += 8 + storages[key].size
    if place > file_state(file.fileno()).size or not storages.keys() <= places.keys():
        raise MalformedError("the file was cut short")

    def read(storage: _Storage) -> bytearray:
        file.seek(places[storage.key])
        return bytearray(file.read(storage.size))

    return content, read


def _unpickle(file: io.BytesIO) -> tuple[Any, Mapping[str, _Storage]]:
    """What the pickle here describes, and the storages that it names."""
    start = file.tell()
    for operation, argument, _ in pickletools.genops(file):
        # Python makes as much room as the place needs.
        if operation.name.endswith("PUT") and (argument or 0) > _MAX_PICKLE:
            raise MalformedError("too high a place")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _is_all_tensors(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and is_unicode(name) and isinstance(tensor, _Tensor)
        for name, tensor in dict.items(content)
    )


def _are_sizes(values: Any) -> bool:
    return type(values) is tuple and all(type(value) is int and 0 <= value < _MAX_SIZE for value in values)


@contextmanager
def _damage() -> Iterator[None]:
    """Turn whatever damage raises, which is almost any type, into MalformedError."""
    try:
        yield
    except (DreamCacheError, OSError, _CodeError):
        raise
    except Exception as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from error
