"""The disk cache in training: the loss with it is the loss without."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.network import untrained_adapter
from dreamcache.dreamcache_core.io.disk_cache import DiskCache
from dreamcache.dreamcache_core.training.batches import make_batches
from dreamcache.dreamcache_core.training.loss import Batch, denoising_loss
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from dreamcache.dreamcache_core.training.triplets import open_triplets
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from PIL import Image
from support.miniature import models

SETTINGS = TrainingSettings(batch=3, seed=3)


@pytest.fixture
def batches(tmp_path: Path) -> Iterator[list[Batch]]:
    """Of three samples, the last of which has a reference of its own."""
    for number in range(3):
        picture = Image.linear_gradient("L").resize((64, 64)).rotate(40 * number).convert("RGB")
        extra = {"reference": picture.rotate(20)} if number == 2 else {"mask": Image.new("L", (64, 64), 255)}
        save_triplet(tmp_path / "triplets", {"generation": picture, **extra}, f"picture {number}")
    return make_batches(open_triplets(tmp_path / "triplets"), SETTINGS, 64)


def new_base(structure: str, cache: DiskCache | None, kind: type[ComfyUIBase] = ComfyUIBase) -> Any:
    model = models.unet_patcher(structure)
    adapter = untrained_adapter(structure_of(model), seed=1)
    base = kind(model, models.vae(), models.clip(structure), adapter, disk_cache=cache)
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


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[list[Batch]]:
    """Steps of three samples, each with a reference of its own: nothing is augmented but prompts that are emptied."""
    for number in range(3):
        picture = Image.linear_gradient("L").resize((64, 64)).rotate(40 * number).convert("RGB")
        pictures = {"generation": picture, "reference": picture.rotate(20)}
        save_triplet(tmp_path / "plain", pictures, f"picture {number}")
    return make_batches(open_triplets(tmp_path / "plain"), SETTINGS, 64)


class Counting(ComfyUIBase):
    """A base that counts what it encodes."""

    images = prompts = 0

    def _encode_images(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return super()._encode_images(images)

    def _encode_prompts(self, prompts: Sequence[str]) -> list[tuple[torch.Tensor, ...]]:
        self.prompts += len(prompts)
        return super()._encode_prompts(prompts)


def losses_of_epochs(base: ComfyUIBase, epochs: Sequence[Batch]) -> list[torch.Tensor]:
    return [denoising_loss(base, batch, SETTINGS).detach() for batch in epochs]


def test_cached_training_has_the_bits_of_uncached_and_the_second_epoch_encodes_nothing(
    plain: Iterator[list[Batch]], tmp_path: Path
) -> None:
    epochs = [batch for (batch,) in itertools.islice(plain, 2)]
    uncached = losses_of_epochs(new_base("sd15", None), epochs)
    cached = new_base("sd15", DiskCache(tmp_path / "cache"), Counting)
    for epoch, expected in zip(epochs, uncached, strict=True):
        before = cached.images, cached.prompts
        assert torch.equal(*losses_of_epochs(cached, [epoch]), expected)
    assert before == (cached.images, cached.prompts) == (6, 4)  # With the empty prompt of the caching pass.
    # Another process, or the same training resumed.
    other = new_base("sd15", DiskCache(tmp_path / "cache"), Counting)
    assert all(map(torch.equal, losses_of_epochs(other, epochs), uncached))
    assert not other.images
    assert not other.prompts


def test_float16_changes_the_loss_by_less_than_a_thousandth(plain: Iterator[list[Batch]], tmp_path: Path) -> None:
    epochs = [batch for (batch,) in itertools.islice(plain, 4)]
    exact = losses_of_epochs(new_base("sd15", None), epochs)
    half = [losses_of_epochs(new_base("sd15", DiskCache(tmp_path / "cache", torch.float16)), epochs) for _ in range(2)]
    made, read = (torch.cat(losses) for losses in half)
    assert torch.equal(made, read)
    assert not torch.equal(made, torch.cat(exact))
    torch.testing.assert_close(made, torch.cat(exact), rtol=1e-3, atol=0)
