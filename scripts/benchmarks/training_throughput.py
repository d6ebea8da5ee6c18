"""Training on Stable Diffusion 1.5 at full size with generated weights: samples a second, memory, and the floor.

`python3 scripts/benchmarks/training_throughput.py` takes the GPU if the Python that runs ComfyUI can, else the CPU,
where it takes some minutes. After `--minutes` it begins with no further batch. It writes `training_speed.md`. The floor
is what the operations would take at the rate of large matrix products. Pictures are in memory: reading them is not
measured. What a disk cache keeps is read from the disk.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.full_size import BASE, SEED
from harness.environment import ROOT, enter, import_pack
from harness.markdown_table import markdown_table

if TYPE_CHECKING:
    import torch
    from dreamcache.dreamcache_core.training.loss import Batch
    from dreamcache.dreamcache_core.training.trainer import Trainer

PAPER_SAMPLES = 200_000 * 48
EVENING = 8
"""Hours."""
OPERATORS = 10
"""As many of the profile are shown."""


@dataclass(frozen=True)
class Part:
    """Of a training step, and of one sample. `kept`: whether a disk cache spares it when the sample comes again."""

    name: str
    operations: int
    seconds: float
    kept: bool = False


def main() -> None:
    options = _options()
    environment = enter(pack=False)
    import torch
    from harness.generated_weights import write_models

    cuda = torch.cuda.is_available() and not options.cpu
    import_pack(environment, cpu=not cuda)
    checkpoint = BASE / "models" / "checkpoints" / write_models(BASE / "models", "SD15", SEED)
    import comfy.sd
    from dreamcache.dreamcache_core.adapter.network import untrained_adapter
    from dreamcache.dreamcache_core.io.disk_cache import DiskCache
    from dreamcache.dreamcache_core.training.settings import PRECISIONS, TrainingSettings
    from dreamcache.dreamcache_core.training.trainer import Trainer
    from dreamcache.nodes.host.base_model import structure_of
    from dreamcache.nodes.host.frozen_base import ComfyUIBase

    options.precision = PRECISIONS[options.precision or ("bfloat16" if cuda else "float32")]
    options.batch = options.batch or ([8, 16, 32, 48, 64, 96] if cuda else [1])
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    adapter = untrained_adapter(structure_of(model), SEED).to(model.load_device)
    lines: list[str] = []
    with TemporaryDirectory() as folder:
        kept = DiskCache(Path(folder), torch.float16)
        base = ComfyUIBase(model, vae, clip, adapter, options.precision, options.checkpointing, kept)
        base.load()

        def trainer(batch: int) -> Trainer:
            return Trainer(base, adapter, TrainingSettings(batch=batch))

        for line in page(trainer, options):
            print(line, flush=True)
            lines.append(line)
    (options.output / "training_speed.md").write_text("\n".join(lines))


def page(trainer: Callable[[int], Trainer], options: argparse.Namespace) -> Iterator[str]:
    """Its lines, as they are measured. `trainer`: for batches of some size."""
    import torch
    from dreamcache.dreamcache_core.training.estimate import measure

    started, device = time.monotonic(), trainer(1).base.sigmas.device
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    rate = matmul_rate(device, options.precision)
    size = options.batch[0]
    parts = measure_parts(trainer(size), batches(size, options.resolution, again=False))
    spared, rest = ([part for part in parts if part.kept == kept] for kept in (True, False))
    largest = max(spared, key=lambda part: part.seconds)
    floor, later_floor = (rate / sum(part.operations for part in some) for some in (parts, rest))
    yield from (
        "# Speed of training",
        "",
        f"Measured by `python3 scripts/benchmarks/training_throughput.py`: {name}, {options.precision}, torch "
        f"{torch.__version__}, {rate / 1e12:.3g} TFLOP/s in products of large matrices. SD1.5 at full size with "
        f"generated weights, pictures of {options.resolution}².",
        "",
        f"The floor is what a step's operations would take at that rate: {floor:.3g} samples/s, {later_floor:.3g} in "
        f"later epochs, for which a disk cache keeps the encodings. The paper's {PAPER_SAMPLES / 1e6:.1f} million "
        f"samples would take {_hours(floor)} or {_hours(later_floor)} hours.",
        "",
        *markdown_table(
            [
                *("batch", "samples/s", "of the floor", "in later epochs", "of the floor"),
                *("memory at the peak, GiB", "hours for the paper's samples", f"samples in {EVENING} hours"),
            ]
        ),
    )
    for size in options.batch:
        if time.monotonic() - started > 60 * options.minutes:
            yield f"| {size} | not measured: {options.minutes:g} minutes were over | | | | | | |"
            break
        try:
            # The second time, the disk cache has what the first one made.
            first, later = (
                measure(trainer(size), batches(size, options.resolution), options.steps) for _ in ("first", "later")
            )
        except torch.OutOfMemoryError:
            yield f"| {size} | out of memory | | | | | | |"
            break
        speed, again = first.samples_per_second, later.samples_per_second
        yield (
            f"| {size} | {speed:.3g} | {speed / floor:.0%} | {again:.3g} | {again / later_floor:.0%} | "
            f"{first.peak / 2**30:.2f} | {_hours(again)} | {again * EVENING * 3600:,.0f} |"
        )
    yield from (
        "",
        "## Where the time goes",
        "",
        f"Of a sample in a batch of {options.batch[0]}. Gradients take the decoder only: what lies before the first "
        "adapter has nothing to learn, and the base's weights get none.",
        "",
        *markdown_table(
            ["", "TFLOP", "s", "of the floor"],
            ([part.name, f"{part.operations / 1e12:.3f}", f"{part.seconds:.3g}", _share(rate, part)] for part in parts),
        ),
        "",
        f"A disk cache keeps the first three for later epochs. They run at {_share(rate, *spared)} of the floor, and "
        f"the rest, which later epochs are left with, at {_share(rate, *rest)}. The largest item that can be avoided "
        f"is {largest.name}: {largest.seconds:.3g} s of each sample without a cache.",
        "",
        f"The {OPERATORS} operators that take most, of a step in later epochs:",
        "",
        *markdown_table(
            ["operator", "share of the time", "calls"],
            profile(trainer(options.batch[0]), next(batches(options.batch[0], options.resolution))),
        ),
        "",
    )


def _share(rate: float, *parts: Part) -> str:
    return f"{sum(part.operations for part in parts) / rate / sum(part.seconds for part in parts):.0%}"


def _hours(samples_per_second: float) -> str:
    return f"{PAPER_SAMPLES / samples_per_second / 3600:,.0f}"


def matmul_rate(device: torch.device, precision: torch.dtype) -> float:
    """Operations a second, two for each multiplication, in the best of some products of large matrices."""
    import torch

    size, repeats = (8192, 20) if device.type == "cuda" else (2048, 2)
    matrix = torch.randn(size, size, device=device, dtype=precision)

    def seconds() -> float:
        started = time.monotonic()
        for _ in range(repeats):
            product = matrix @ matrix
        product[0, 0].item()  # Waits for the device.
        return time.monotonic() - started

    return repeats * 2 * size**3 / min(seconds() for _ in range(5))


def measure_parts(trainer: Trainer, batches: Iterator[list[Batch]]) -> list[Part]:
    """What each part of a step takes for one of its samples. The trainer takes three steps."""
    import torch

    base = trainer.base
    # First, since what comes first is slower: memory is new.
    step = _part("", batches, trainer.train)
    with torch.no_grad():
        latents = base.encode_images(next(batches)[0].targets)
        before = [
            _part("encoding the target", batches, lambda batch: base.encode_images(batch[0].targets), kept=True),
            _part("encoding the reference", batches, lambda batch: base.encode_images(batch[0].references), kept=True),
            _part("encoding the prompt", batches, lambda batch: base.encode_prompts(batch[0].prompts), kept=True),
            _part("caching pass", batches, lambda _: base.cache(latents, latents)),
        ]
    return [
        *before,
        Part(
            "denoising, forwards and backwards, and the optimiser",
            step.operations - sum(part.operations for part in before),
            step.seconds - sum(part.seconds for part in before),
        ),
    ]


def _part(name: str, batches: Iterator[list[Batch]], run: Callable[[list[Batch]], object], kept: bool = False) -> Part:
    from dreamcache.dreamcache_core.training.estimate import count_operations

    # Counted first, since the first time is slower by itself; always another batch, whose prompts aren't known yet.
    counted, *timed = itertools.islice(batches, 3)
    with count_operations() as counter:
        run(counted)
    samples, seconds = len(counted[0].numbers), min(_seconds(partial(run, batch)) for batch in timed)
    return Part(name, counter.get_total_flops() // samples, seconds / samples, kept)


def _seconds(run: Callable[[], object]) -> float:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    started = time.monotonic()
    run()
    wait()
    return time.monotonic() - started


def profile(trainer: Trainer, batch: Sequence[Batch]) -> list[list[str]]:
    """Operators of a step by the time that they themselves take: names, shares and calls."""
    import torch
    from torch.profiler import ProfilerActivity

    cuda = trainer.base.sigmas.device.type == "cuda"
    trainer.train(batch)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        trainer.train(batch)
    times = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    total = sum(taken for taken, _ in times.values())
    most = sorted(times.items(), key=lambda item: item[1], reverse=True)[:OPERATORS]
    return [[f"`{name}`", f"{taken / total:.0%}", f"{calls:,}"] for name, (taken, calls) in most]


def batches(size: int, resolution: int, again: bool = True) -> Iterator[list[Batch]]:
    """Noise in place of pictures, without end, the same each time. `again`: whether a disk cache keeps what is made of
    it.
    """
    import torch
    from dreamcache.dreamcache_core.training.loss import Batch

    for step in itertools.count():
        targets, references = torch.rand(
            2, size, resolution, resolution, 3, generator=torch.Generator().manual_seed(step)
        )
        numbers = range(step * size, (step + 1) * size)
        prompts = [f"a dog on beach {number} of {size}" for number in numbers]
        target_keys, reference_keys = (
            [f"{picture} of {prompt}" if again else None for prompt in prompts] for picture in ("target", "reference")
        )
        yield [Batch(numbers, targets, references, prompts, target_keys, reference_keys)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure training on SD1.5 at full size.")
    parser.add_argument("--batch", type=int, nargs="+", help="sizes (default: 8…96, on the CPU 1)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="(default: bfloat16, on the CPU float32)")
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--checkpointing", action="store_true", help="as in training")
    parser.add_argument("--steps", type=int, default=3, help="that are measured (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="after which no further batch is measured (default: %(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--output", type=Path, default=ROOT / "web" / "docs", help="folder (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
