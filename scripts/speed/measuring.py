"""Time and memory of real steps, each beside one of the plain model, so that a busy machine troubles both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.estimate import memory_of, reset_peak

from .variants import PLAIN, Bench, Evaluations, Variant, guider_of

# Near the first of SD1.5's sigmas, and the end of sampling.
_SIGMAS = (14.0, 0.0)


@dataclass(frozen=True)
class StepCost:
    """What a step of a variant costs, for pictures of `size`×`size` pixels.

    `seconds`, `ratio`: of a step other than the first, and to one of the plain model, each a median. `once`: seconds
    that a run takes beside its steps. `memory`: bytes at the peak of a step more than the plain model's.
    """

    variant: str
    size: int
    batch: int
    seconds: float
    ratio: float
    once: float
    memory: int


class Stopwatch:
    """Seconds of a GPU; on a CPU those in which this process, of one thread, computed, whatever others did."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def __call__(self, run: Callable[[], object]) -> float:
        started = self._now()
        run()
        return self._now() - started

    def median(self, run: Callable[[], object], times: int = 5) -> float:
        return statistics.median(self(run) for _ in range(times))

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def measure_steps(bench: Bench, variants: Mapping[str, Variant], size: int, batch: int, rounds: int) -> list[StepCost]:
    """All of these variants, of which one is PLAIN, which comes first in what is returned."""
    _evaluate(variants[PLAIN](bench), size, batch)  # The first of a process is slower by a third.
    pairs: dict[str, list[tuple[_Evaluated, _Evaluated]]] = {variant: [] for variant in variants if variant != PLAIN}
    for number in range(rounds):
        for variant, measured in pairs.items():
            # In turns, for whichever comes second may be slower by that alone.
            order = (PLAIN, variant) if number % 2 else (variant, PLAIN)
            costs = {name: _evaluate(variants[name](bench), size, batch) for name in order}
            plain, other = costs[PLAIN], costs[variant]
            print(f"{variant}: {other.seconds:.3f} s, and {plain.seconds:.3f} s without", flush=True)
            measured.append((plain, other))
    everywhere = [plain for of_variant in pairs.values() for plain, _ in of_variant]
    table = [StepCost(PLAIN, size, batch, statistics.median(plain.seconds for plain in everywhere), 1.0, 0.0, 0)]
    for variant, of_variant in pairs.items():
        table.append(
            StepCost(
                variant,
                size,
                batch,
                seconds=statistics.median(other.seconds for _, other in of_variant),
                ratio=statistics.median(other.seconds / plain.seconds for plain, other in of_variant),
                once=statistics.median(other.once for _, other in of_variant),
                memory=round(statistics.median(other.peak - plain.peak for plain, other in of_variant)),
            )
        )
    return table


@dataclass(frozen=True)
class _Evaluated:
    """`peak`: bytes of memory. Others: as in StepCost."""

    seconds: float
    once: float
    peak: int


def _evaluate(model: ModelPatcher, size: int, batch: int) -> _Evaluated:
    device = model.load_device
    stopwatch = Stopwatch(device)
    results = []

    def visit(evaluate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        # What is made once a run, keys and values, does not depend on the size of the pictures.
        small, latents = (torch.randn(batch, 4, side, side, device=device) for side in (8, size // 8))
        first, again = stopwatch(lambda: evaluate(small)), stopwatch(lambda: evaluate(small))
        if device.type == "cuda":
            evaluate(latents)
        reset_peak(device)
        seconds = stopwatch(lambda: evaluate(latents))
        results.append(_Evaluated(seconds, max(0.0, first - again), memory_of(device, "VmHWM")))

    noise = torch.zeros(batch, 4, size // 8, size // 8)
    guider_of(model).sample(noise, noise, Evaluations(visit), torch.tensor(_SIGMAS), disable_pbar=True)
    return results[0]
