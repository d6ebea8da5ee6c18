"""Batches of triplets. Each triplet has a number in the training, counted over all epochs, which decides all else."""

from __future__ import annotations

import functools
import itertools
import signal
from collections.abc import Iterator, Sequence
from random import Random

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
    micro_batches: int = 1,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[list[Batch]]:
    """The micro-batches of each step from `first_step` on, without end: this process's share of each batch.

    `resolution`: side of the square images, in pixels. `micro_batches`: how many a process cuts its share into.
    `workers`: processes that read images ahead. Raises DreamCacheError if the batch can't be divided evenly.
    """
    if settings.batch % (processes * micro_batches):
        raise DreamCacheError(
            f"A batch of {settings.batch} cannot be split into {processes} processes × {micro_batches} micro-batches: "
            f"choose a multiple of {processes * micro_batches}."
        )
    loader = DataLoader(
        _NumberedTriplets(triplets, resolution, settings),
        batch_sampler=_numbers(settings.batch, first_step, micro_batches, process, processes),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_signals,
    )
    of_one_step = [iter(loader)] * micro_batches
    return (list(step) for step in zip(*of_one_step, strict=True))


def _numbers(batch: int, first_step: int, micro_batches: int, process: int, processes: int) -> Iterator[range]:
    """The numbers of the triplets of each micro-batch of each step."""
    size = batch // (processes * micro_batches)
    for step in itertools.count(first_step):
        for micro_batch in range(micro_batches):
            start = step * batch + (process * micro_batches + micro_batch) * size
            yield range(start, start + size)


class _NumberedTriplets(Dataset):
    """The triplets of a training by number: one epoch after the other, each in its own order."""

    def __init__(self, triplets: Triplets, resolution: int, settings: TrainingSettings) -> None:
        self._triplets = triplets
        self._resolution = resolution
        self._settings = settings
        self._order = functools.lru_cache(maxsize=2)(functools.partial(epoch_order, len(triplets), settings.seed))

    def __getitem__(self, number: int) -> tuple[int, Triplet]:
        epoch, place = divmod(number, len(self._triplets))
        seed, share = self._settings.seed, self._settings.subject_only
        subject_only = Random(f"{seed}/subject only/{number}").random() < share
        return number, self._triplets.load(self._order(epoch)[place], self._resolution, seed, epoch, subject_only)


def collate(numbered: Sequence[tuple[int, Triplet]]) -> Batch:
    """Triplets, each with its number, as a batch."""
    numbers, triplets = zip(*numbered, strict=True)
    return Batch(
        numbers=numbers,
        targets=torch.stack([triplet.target for triplet in triplets]),
        references=torch.stack([triplet.reference for triplet in triplets]),
        prompts=[triplet.prompt for triplet in triplets],
        # Computed here, since this runs in the workers.
        target_keys=[fingerprint(triplet.target) for triplet in triplets],
        reference_keys=[None if triplet.augmented else fingerprint(triplet.reference) for triplet in triplets],
        names=[triplet.name for triplet in triplets],
        subjects=_subjects(triplets),
    )


def _subjects(triplets: Sequence[Triplet]) -> torch.Tensor | None:
    """`Batch.subjects` of these triplets."""
    if all(triplet.subject is None for triplet in triplets):
        return None
    all_of_it = torch.ones(triplets[0].reference.shape[:2])
    return torch.stack([all_of_it if triplet.subject is None else triplet.subject for triplet in triplets])


def _ignore_signals(worker: int) -> None:
    """Let the training alone decide what Ctrl+C does: a terminal sends it to the workers too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
