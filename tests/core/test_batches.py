"""Triplets as batches: nothing is skipped or seen twice, however the work is shared out, stopped and resumed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.batches import make_batches
from dreamcache.dreamcache_core.training.loss import Batch
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from dreamcache.dreamcache_core.training.triplets import Triplets, open_triplets
from PIL import Image

SETTINGS = TrainingSettings(batch=4, seed=3)
SAMPLES = 6


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Triplets:
    folder = tmp_path_factory.mktemp("triplets")
    for number in range(SAMPLES):
        picture = Image.new("RGB", (32, 32), (40 * number, 0, 0))
        save_triplet(folder, {"generation": picture, "mask": Image.new("L", (32, 32), 255)}, f"picture {number}")
    return open_triplets(folder)


def steps(triplets: Triplets, count: int, settings: TrainingSettings = SETTINGS, **how: int) -> list:
    return list(itertools.islice(make_batches(triplets, settings, 32, **how), count))


def test_every_epoch_has_each_sample_once(triplets: Triplets) -> None:
    # 3 batches of 4 are 2 epochs of 6.
    batches = [batch for (batch,) in steps(triplets, 3)]
    numbers = [number for batch in batches for number in batch.numbers]
    assert numbers == list(range(12))
    reds = torch.cat([batch.targets for batch in batches])[:, 0, 0, 0]
    expected = torch.arange(SAMPLES) * 40 / 255
    for epoch in (reds[:SAMPLES], reds[SAMPLES:]):
        torch.testing.assert_close(epoch.sort().values, expected)
    assert not torch.equal(reds[:SAMPLES], reds[SAMPLES:])


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_parts_and_workers_share_the_same_batches(triplets: Triplets, workers: int) -> None:
    whole = steps(triplets, 2)
    first, second = (
        steps(triplets, 2, process=process, processes=2, micro_batches=2, workers=workers) for process in (0, 1)
    )
    for (batch,), shares in zip(whole, zip(first, second, strict=True), strict=True):
        pieces = [part for share in shares for part in share]
        assert [number for part in pieces for number in part.numbers] == list(batch.numbers)
        assert torch.equal(torch.cat([part.targets for part in pieces]), batch.targets)
        assert torch.equal(torch.cat([part.references for part in pieces]), batch.references)
        assert [prompt for part in pieces for prompt in part.prompts] == list(batch.prompts)


def test_later_steps_are_the_same_when_begun_with(triplets: Triplets) -> None:
    (later,) = steps(triplets, 1, first_step=2)
    (_, _, third) = steps(triplets, 3)
    assert later[0].numbers == third[0].numbers
    assert torch.equal(later[0].references, third[0].references)


def test_of_a_share_of_references_only_the_subject_is_read(triplets: Triplets) -> None:
    def all_of(share: float, **how: int) -> list[Batch]:
        return [batch for (batch,) in steps(triplets, 25, replace(SETTINGS, subject_only=share), **how)]

    none, some, every = all_of(0.0), all_of(0.3), all_of(1.0)
    assert all(batch.subjects is None for batch in none)
    counts = []
    for share in (some, every):
        counts.append(0)
        for batch, plain in zip(share, none, strict=True):
            # All else is the same, to the bit.
            assert torch.equal(batch.references, plain.references)
            assert torch.equal(batch.targets, plain.targets)
            assert (list(batch.prompts), batch.reference_keys) == (list(plain.prompts), plain.reference_keys)
            everywhere = torch.ones(batch.references.shape[:3])
            subjects = everywhere if batch.subjects is None else batch.subjects
            for reference, subject in zip(batch.references, subjects, strict=True):
                if not subject.all():
                    # The pictures have no green, and the white around them has.
                    assert torch.equal(subject > 0.5, reference[..., 1] < 0.5)
                    counts[-1] += 1
    assert 20 < counts[0] < 40
    assert 90 < counts[1] <= 100
    later = all_of(1.0, first_step=2)
    for one, other in zip(every[2:], later[:23], strict=True):
        assert one.subjects is not None and other.subjects is not None
        assert torch.equal(one.subjects, other.subjects)


def test_a_reference_of_its_own_is_read_as_a_whole(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    save_triplet(tmp_path, {"generation": picture, "reference": picture}, "a picture")
    ((batch,),) = steps(open_triplets(tmp_path), 1, replace(SETTINGS, subject_only=1.0))
    assert batch.subjects is None


def test_a_batch_that_cannot_be_shared_out_is_refused(triplets: Triplets) -> None:
    with pytest.raises(DreamCacheError, match="choose a multiple of 3"):
        make_batches(triplets, SETTINGS, 32, processes=3)
