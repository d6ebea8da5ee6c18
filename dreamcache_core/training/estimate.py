"""What a training will take, measured on a few of its steps. Nothing is written."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoints import room_needed
from .loss import Batch
from .trainer import Trainer

_GIB = 2**30
# Weights, gradients, averaged weights, and the optimiser's two numbers for each weight; all in float32.
_BYTES_PER_PARAMETER = 5 * 4


@dataclass(frozen=True)
class Cost:
    """What steps take: `samples_per_second`, triplets in all processes, and memory of this process's device in bytes.

    `held`: between steps. `peak`: the most during a step. On the CPU both are those of the process, and 0 on systems
    that don't report them.
    """

    samples_per_second: float
    held: int
    peak: int


def measure(trainer: Trainer, batches: Iterable[Sequence[Batch]], steps: int = 2) -> Cost:
    """Train for `steps` steps after a first one, which is slower and not measured.

    `batches`: as Trainer.run takes them. Raises DreamCacheError as Trainer.run does.
    """
    device = trainer.base.sigmas.device
    progress = trainer.run(batches)
    first = next(progress)
    held = memory_of(device, "VmRSS")
    reset_peak(device)
    rates = [step.samples_per_second for step in itertools.islice(progress, steps)]
    rates = rates or [first.samples_per_second]  # The training has a single step.
    return Cost(len(rates) / sum(1 / rate for rate in rates), held, memory_of(device, "VmHWM"))


def describe(trainer: Trainer, cost: Cost, triplets: int, folder: Path) -> str:
    """The estimate in words. `triplets`: how many there are. `folder`: the output folder, which need not exist."""
    settings, parameters = trainer.settings, trainer.adapter.parameter_count
    samples = settings.steps * settings.batch
    seconds = datetime.timedelta(seconds=round(samples / cost.samples_per_second))
    existing = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    room, free = room_needed(trainer.state()) + 4 * parameters, shutil.disk_usage(existing).free
    return "\n".join(
        [
            f"data: {settings.steps:,} steps of {settings.batch} are {samples:,} samples, or {samples / triplets:,.1f} "
            f"epochs of {triplets:,} triplets",
            f"adapter: {parameters:,} parameters, and with gradients, averages and the optimiser's state "
            f"{parameters * _BYTES_PER_PARAMETER / _GIB:.2f} GiB",
            f"memory: {cost.held / _GIB:.2f} GiB between steps, {cost.peak / _GIB:.2f} GiB at the peak of a step "
            f"(measured, {trainer.base.sigmas.device})",
            f"time: {cost.samples_per_second:.3g} samples/s (measured), {seconds} in all",
            f"disk: {room / _GIB:.2f} GiB for checkpoints and the adapter, of {free / _GIB:.2f} GiB free",
        ]
    )


def memory_of(device: torch.device, figure: str) -> int:
    """Bytes in use, or the most since `reset_peak`. `figure`: Linux's name of it, VmRSS or VmHWM."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() if figure == "VmRSS" else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(rf"{figure}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def reset_peak(device: torch.device) -> None:
    """Measure the peak of memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # Not every system allows it.
        Path("/proc/self/clear_refs").write_text("5")
