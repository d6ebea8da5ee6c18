"""What a training will take, measured on a few of its steps. Nothing is written."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..unet import PIXELS_PER_LATENT
from .checkpoints import room_needed
from .loss import Batch, FrozenBase
from .trainer import Trainer
from .triplets import Triplets

_GIB = 2**30
# Weights, gradients, averaged weights, and the optimiser's two numbers for each weight; all in float32.
_BYTES_PER_PARAMETER = 5 * 4
_LATENT_CHANNELS = 4

SAMPLES = (250_000, 1_000_000, 9_600_000)
"""That an estimate is given for; the last is the paper's."""
CARDS = {"RTX 3060 12 GB": 25.5e12, "RTX 4090": 165.2e12, "H100 SXM": 989.5e12}
"""Operations a second in dense bfloat16 products with sums in float32: the H100's is NVIDIA's own figure, and GeForce
cards since Ampere have twice their float32 rate (12.74 and 82.6 TFLOP/s).
"""


@dataclass(frozen=True)
class Cost:
    """What steps take: `samples_per_second`, triplets in all processes, and memory of this process's device in bytes.

    `held`: between steps. `peak`: the most during a step. On the CPU both are those of the process, and 0 on systems
    that don't report them. `operations`: counted for one sample, two for each multiplication. `kept_operations`,
    `kept_seconds`: the part of a sample that a disk cache keeps for later epochs.
    """

    samples_per_second: float
    held: int
    peak: int
    operations: float
    kept_operations: float
    kept_seconds: float

    def seconds(self, samples: int, triplets: int, cached: bool) -> float:
        """The time to train on `samples`. `cached`: whether a disk cache keeps latents and prompts for later epochs."""
        first = samples if not cached else min(samples, triplets)
        later = max(1 / self.samples_per_second - self.kept_seconds, 0.0)
        return first / self.samples_per_second + (samples - first) * later


def count_operations() -> FlopCounterMode:
    """A context that counts operations, two for each multiplication. PyTorch's own doesn't count attention on CPUs."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        # Two products for each of the forward pass. That it computes one of those again isn't counted.
        backward: lambda _, query, key, value, *__, **___: 2 * sdpa_flop_count(query, key, value),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def measure(trainer: Trainer, batches: Iterable[Sequence[Batch]], steps: int = 2) -> Cost:
    """Train for `steps` steps after a first one, which is slower and not measured, but counted.

    `batches`: as Trainer.run takes them. Raises DreamCacheError as Trainer.run does.
    """
    device, batches = trainer.base.sigmas.device, iter(batches)
    counted = next(batches)
    progress = trainer.run(itertools.chain([counted], batches))
    with count_operations() as counter:
        first = next(progress)
    held = memory_of(device, "VmRSS")
    reset_peak(device)
    rates = [step.samples_per_second for step in itertools.islice(progress, steps)]
    rates = rates or [first.samples_per_second]  # The training has a single step.
    peak = memory_of(device, "VmHWM")
    operations = counter.get_total_flops() / sum(len(batch.numbers) for batch in counted)
    return Cost(len(rates) / sum(1 / rate for rate in rates), held, peak, operations, *_kept(trainer.base, counted[0]))


@torch.no_grad()
def _kept(base: FrozenBase, batch: Batch) -> tuple[float, float]:
    """Operations and seconds of what later epochs use again of a sample."""
    own = [number for number, key in enumerate(batch.reference_keys) if key]

    def encode() -> None:
        base.encode_prompts(batch.prompts)
        for images in (batch.targets, batch.references[own]):
            if len(images):
                base.encode_images(images)[0, 0, 0, 0].item()  # Waits for the device.

    with count_operations() as counter:
        encode()
    started = time.monotonic()
    encode()
    return counter.get_total_flops() / len(batch.numbers), (time.monotonic() - started) / len(batch.numbers)


def cache_size(base: FrozenBase, triplets: Triplets, resolution: int, precision: torch.dtype) -> int:
    """Bytes of all latents and prompts of a data set in a disk cache, if no two prompts are alike."""
    prompt = base.encode_prompts([""])
    values = prompt.context.numel() + (0 if prompt.pooled is None else prompt.pooled.numel())
    latent = _LATENT_CHANNELS * (resolution // PIXELS_PER_LATENT) ** 2
    return precision.itemsize * (len(triplets) * (latent + values) + triplets.own_references * latent)


def describe(trainer: Trainer, cost: Cost, triplets: Triplets, folder: Path, cache: int = 0) -> str:
    """The estimate in words. `folder`: the output folder, which need not exist. `cache`: bytes of the disk cache, 0 for
    none.
    """
    settings, parameters = trainer.settings, trainer.adapter.parameter_count
    samples, count = settings.steps * settings.batch, len(triplets)
    existing = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    room, free = room_needed(trainer.state()) + 4 * parameters, shutil.disk_usage(existing).free
    in_all = datetime.timedelta(seconds=round(cost.seconds(samples, count, bool(cache))))
    kept = f"and {cache / _GIB:.2f} GiB for latents and prompts, " if cache else ""
    return "\n".join(
        [
            f"data: {settings.steps:,} steps of {settings.batch} are {samples:,} samples, or {samples / count:,.1f} "
            f"epochs of {count:,} triplets",
            f"adapter: {parameters:,} parameters, and with gradients, averages and the optimiser's state "
            f"{parameters * _BYTES_PER_PARAMETER / _GIB:.2f} GiB",
            f"memory: {cost.held / _GIB:.2f} GiB between steps, {cost.peak / _GIB:.2f} GiB at the peak of a step "
            f"(measured, {trainer.base.sigmas.device})",
            f"disk: {room / _GIB:.2f} GiB for checkpoints and the adapter, {kept}of {free / _GIB:.2f} GiB free",
            f"time: {cost.samples_per_second:.3g} samples/s (measured), {in_all} in all; "
            + _hours({samples: cost.seconds(samples, count, bool(cache)) for samples in SAMPLES}),
            *_on_cards(cost, count, bool(cache)),
        ]
    )


def _on_cards(cost: Cost, triplets: int, cached: bool) -> list[str]:
    """What the counted operations would take on well-known cards, in words."""
    kept = cost.kept_operations if cached else 0.0
    lines = [
        f"operations: {cost.operations / 1e12:.3g} TFLOP for a sample, {(cost.operations - kept) / 1e12:.3g} in later "
        "epochs (counted). At a card's full bfloat16 rate, which no training reaches, that is at least (not measured):"
    ]
    for card, rate in CARDS.items():
        seconds = {}
        for samples in SAMPLES:
            again = max(0, samples - triplets)
            seconds[samples] = (samples * cost.operations - again * kept) / rate
        lines.append(f"  {card} ({rate / 1e12:.0f} TFLOP/s): {_hours(seconds)}")
    return lines


def _hours(seconds: dict[int, float]) -> str:
    return ", ".join(f"{samples:,} samples {taken / 3600:,.1f} h" for samples, taken in seconds.items())


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
