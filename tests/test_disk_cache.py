"""Latents and prompts kept on disk: the same numbers, and no work that was done before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.network import untrained_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.disk_cache import DiskCache
from dreamcache.dreamcache_core.training.batches import make_batches
from dreamcache.dreamcache_core.training.loss import Batch, denoising_loss
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.triplet_files import save_sample
from dreamcache.dreamcache_core.training.triplets import open_triplets
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from miniature import models
from PIL import Image

SETTINGS = TrainingSettings(batch=3, seed=3)


@pytest.fixture
def batches(tmp_path: Path) -> Iterator[list[Batch]]:
    """Of three samples, the last of which has a reference of its own."""
    for number in range(3):
        picture = Image.linear_gradient("L").resize((64, 64)).rotate(40 * number).convert("RGB")
        extra = {"reference": picture.rotate(20)} if number == 2 else {"mask": Image.new("L", (64, 64), 255)}
        save_sample(tmp_path / "triplets", {"generation": picture, **extra}, f"picture {number}")
    return make_batches(open_triplets(tmp_path / "triplets"), SETTINGS, 64)


def new_base(structure: str, cache: DiskCache | None) -> ComfyUIBase:
    model = models.unet_patcher(structure)
    adapter = untrained_adapter(structure_of(model), seed=1)
    base = ComfyUIBase(model, models.vae(), models.clip(structure), adapter, disk_cache=cache)
    base.load()
    return base


@pytest.mark.parametrize(("structure", "tensors_of_a_prompt"), [("sd15", 1), ("sdxl", 2)])
def test_the_loss_is_the_same_with_latents_from_disk(
    batches: Iterator[list[Batch]], tmp_path: Path, structure: str, tensors_of_a_prompt: int
) -> None:
    epochs = [batch for (batch,) in itertools.islice(batches, 2)]

    def losses(base: ComfyUIBase) -> torch.Tensor:
        return torch.stack([denoising_loss(base, batch, SETTINGS).detach() for batch in epochs])

    expected = losses(new_base(structure, None))
    # In the second round, all comes from disk that may.
    for _ in range(2):
        kept = new_base(structure, DiskCache(tmp_path / "cache"))
        torch.testing.assert_close(losses(kept), expected, rtol=1e-4, atol=0)
        files = list((tmp_path / "cache").rglob("*.safetensors"))
        # 3 targets, 1 reference, and the prompts, of which that of the caching pass is the empty one.
        prompts = {"", *(prompt for batch in epochs for prompt in batch.prompts)}
        assert len(files) == 3 + 1 + tensors_of_a_prompt * len(prompts)


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
    with pytest.raises(DreamCacheError, match=r"Cannot write to .*file: .*; free some space, or continue without"):
        DiskCache(tmp_path / "file").get(["key"], lambda numbers: [torch.zeros(1)])
