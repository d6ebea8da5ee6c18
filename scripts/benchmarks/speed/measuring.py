"""Time and memory of real steps, each beside one of the plain model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.training.estimate import memory_of, reset_peak

from .lockstep import seconds_side_by_side
from .steady import steady
from .variants import PLAIN, Bench, Evaluate, Variant, evaluating


@dataclass(frozen=True)
class StepCost:
    """What a step of a variant costs, for pictures of `size`×`size` pixels.

    `seconds`, `ratio`: of a step other than the first, and to one of the plain model beside it, each a median. `once`:
    seconds that a run takes beside its steps. `memory`: bytes at the peak of a step more than the plain model's.
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
    # For all but seconds each is evaluated once, by itself; the first of a process is slower by a third.
    alone = {name: _evaluate(variants[name](bench), size, batch) for name in [PLAIN, *variants]}
    pairs: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants if variant != PLAIN}

    def pair(variant: str, order: slice) -> Sequence[float]:
        models = variants[PLAIN](bench), variants[variant](bench)
        return _seconds_of(models[order], size, batch)[order]

    with steady(bench.model.load_device):
        # Whoever comes first pays for the memory that is then kept for all others.
        pair(next(iter(pairs)), slice(None))
        for number in range(rounds):
            for variant, measured in pairs.items():
                # Whichever comes second may be slower by that alone.
                plain, other = pair(variant, slice(None, None, -1 if number % 2 else 1))
                print(f"{variant}: {other:.3f} s, and {plain:.3f} s without, {other / plain:.3f}", flush=True)
                measured.append((plain, other))
    everywhere = [plain for of_variant in pairs.values() for plain, _ in of_variant]
    table = [StepCost(PLAIN, size, batch, statistics.median(everywhere), 1.0, 0.0, 0)]
    for variant, of_variant in pairs.items():
        table.append(
            StepCost(
                variant,
                size,
                batch,
                seconds=statistics.median(other for _, other in of_variant),
                ratio=statistics.median(other / plain for plain, other in of_variant),
                once=alone[variant].once,
                memory=alone[variant].peak - alone[PLAIN].peak,
            )
        )
    return table


def _seconds_of(models: Sequence[ModelPatcher], size: int, batch: int) -> Sequence[float]:
    """Of a step of each of two models, on a CPU in turns and on a GPU one after the other."""
    if models[0].load_device.type == "cuda":
        return [_evaluate(model, size, batch).seconds for model in models]
    return seconds_side_by_side(models[0], models[1], size, batch)


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

    def visit(evaluate: Evaluate) -> None:
        # What is made once a run, keys and values, does not depend on the size of the pictures.
        small, latents = (torch.randn(batch, 4, side, side, device=device) for side in (8, size // 8))
        first, again = stopwatch(lambda: evaluate(small)), stopwatch(lambda: evaluate(small))
        if device.type == "cuda":
            evaluate(latents)
        reset_peak(device)
        seconds = stopwatch(lambda: evaluate(latents))
        results.append(_Evaluated(seconds, max(0.0, first - again), memory_of(device, "VmHWM")))

    evaluating(model, size, batch, visit)
    return results[0]
