"""The disk cache: what is kept is made once, and made again if it is damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.disk_cache import FILE_KIND, FILE_VERSION, DiskCache
from dreamcache.dreamcache_core.io.tensor_file import write_file
from safetensors.torch import save


def test_what_is_kept_is_made_once_and_what_is_damaged_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make(numbers: Sequence[int]) -> list[torch.Tensor]:
        made.extend(numbers)
        return [torch.tensor([float(number)]) for number in numbers]

    def get(*keys: str | None) -> list[float]:
        made.clear()
        return [float(tensor) for tensor in DiskCache(tmp_path).get(keys, [(1,)] * len(keys), make)]

    assert get("zero", "one") == [0, 1]
    assert get(None, "one", "two") == [0, 1, 2]
    assert made == [0, 2]
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-2])
    assert get("zero", "one", "two") == [0, 1, 2]
    assert made == [0, 1, 2]
    assert get("zero", "one", "two") == [0, 1, 2]
    assert not made


def other_bytes(path: Path) -> None:
    """As after a power failure, which leaves a file its length."""
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes(4))


def another_shape(path: Path) -> None:
    write_file(path, FILE_KIND, FILE_VERSION, {}, {"encoding": torch.ones(2)})


def another_name(path: Path) -> None:
    write_file(path, FILE_KIND, FILE_VERSION, {}, {"latent": torch.ones(1)})


def another_program(path: Path) -> None:
    path.write_bytes(save({"encoding": torch.ones(1)}))


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("becomes", [other_bytes, another_shape, another_name, another_program, nothing])
def test_a_file_that_holds_something_else_is_made_again(tmp_path: Path, becomes: Callable[[Path], None]) -> None:
    def get(made: float) -> float:
        return float(DiskCache(tmp_path).get(["key"], [(1,)], lambda numbers: [torch.tensor([made])])[0])

    get(7.0)
    (path,) = tmp_path.rglob("*.safetensors")
    becomes(path)
    assert get(8.0) == 8
    assert get(9.0) == 8


def test_float16_takes_half_the_room_and_is_the_same_made_or_read(tmp_path: Path) -> None:
    exact = torch.linspace(-3, 3, 1000)

    def get(folder: str, dtype: torch.dtype, tensor: torch.Tensor = exact) -> torch.Tensor:
        return DiskCache(tmp_path / folder, dtype).get(["key"], [(1000,)], lambda numbers: [tensor])[0]

    def size(folder: str) -> int:
        return sum(path.stat().st_size for path in (tmp_path / folder).rglob("*.safetensors"))

    made = get("half", torch.float16)
    assert made.dtype == torch.float32
    assert torch.equal(made, exact.half().float())
    assert torch.equal(get("half", torch.float16), made)
    assert torch.equal(get("full", torch.float32), exact)
    assert size("full") - size("half") == pytest.approx(2 * 1000, abs=16)
    # A training in float16 reads what one in float32 has made, but not the other way round.
    assert torch.equal(get("full", torch.float16, torch.zeros(1000)), made)
    assert torch.equal(get("half", torch.float32), exact)
    # What float16 can't hold stays float32.
    assert torch.equal(get("large", torch.float16, 1e6 * exact), 1e6 * exact)
    assert torch.equal(get("large", torch.float16), 1e6 * exact)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DreamCacheError, match=r"file/cache cannot be written: a file has the name of a folder"):
        DiskCache(tmp_path / "file" / "cache")
