"""Triplets as batches: each sample of a whole training has a number, and all about it follows from that."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DreamCacheError
from ..io.disk_cache import fingerprint
from .loss import Batch
from .settings import TrainingSettings
from .triplets import Triplet, Triplets, epoch_order


def make_batches(
    triplets: Triplets,
    settings: TrainingSettings,
    resolution: int,
    *,
    first_step: int = 0,
    parts: int = 1,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[list[Batch]]:
    """What each step from `first_step` on trains on, without end: this process's share of the batch, in `parts`.

    `resolution`: side of the square pictures. `workers`: processes that read pictures ahead.
    Raises DreamCacheError if the batch can't be shared out evenly.
    """
    if settings.batch % (processes * parts):
        raise DreamCacheError(
            f"A batch of {settings.batch} cannot be split into {processes} processes × {parts} micro-batches: choose "
            f"a multiple of {processes * parts}."
        )
    loader = DataLoader(
        _NumberedTriplets(triplets, resolution, settings.seed),
        batch_sampler=_numbers(settings.batch, first_step, parts, process, processes),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_batch,
    )
    of_one_step = [iter(loader)] * parts
    return (list(step) for step in zip(*of_one_step, strict=True))


def _numbers(batch: int, first_step: int, parts: int, process: int, processes: int) -> Iterator[range]:
    """Numbers of the samples of each part of each step."""
    size = batch // (processes * parts)
    for step in itertools.count(first_step):
        for part in range(parts):
            start = step * batch + (process * parts + part) * size
            yield range(start, start + size)


class _NumberedTriplets(Dataset):
    """Every sample of a whole training, by its number: epoch after epoch, each in an order of its own."""

    def __init__(self, triplets: Triplets, resolution: int, seed: int) -> None:
        self._triplets = triplets
        self._resolution = resolution
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(functools.partial(epoch_order, len(triplets), seed))

    def __getitem__(self, number: int) -> tuple[int, Triplet]:
        epoch, place = divmod(number, len(self._triplets))
        return number, self._triplets.load(self._order(epoch)[place], self._resolution, self._seed, epoch)


def _batch(samples: Sequence[tuple[int, Triplet]]) -> Batch:
    numbers, triplets = zip(*samples, strict=True)
    return Batch(
        numbers=numbers,
        targets=torch.stack([triplet.target for triplet in triplets]),
        references=torch.stack([triplet.reference for triplet in triplets]),
        prompts=[triplet.prompt for triplet in triplets],
        # Made here, for this runs in the workers.
        target_keys=[fingerprint(triplet.target) for triplet in triplets],
        reference_keys=[None if triplet.augmented else fingerprint(triplet.reference) for triplet in triplets],
    )
