"""The disk cache: what is kept is made once, and made again if it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.disk_cache import DiskCache


def test_what_is_kept_is_made_once_and_what_is_damaged_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make(numbers: Sequence[int]) -> list[torch.Tensor]:
        made.extend(numbers)
        return [torch.tensor([float(number)]) for number in numbers]

    def get(*keys: str | None) -> list[float]:
        made.clear()
        return [float(tensor) for tensor in DiskCache(tmp_path).get(keys, make)]

    assert get("zero", "one") == [0, 1]
    assert get(None, "one", "two") == [0, 1, 2]
    assert made == [0, 2]
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-2])
    assert get("zero", "one", "two") == [0, 1, 2]
    assert made == [0, 1, 2]
    assert get("zero", "one", "two") == [0, 1, 2]
    assert not made


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DreamCacheError, match=r"file/cache cannot be written: a file has the name of a folder"):
        DiskCache(tmp_path / "file" / "cache")
