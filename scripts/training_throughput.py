"""Training on Stable Diffusion 1.5 at full size with generated weights: samples a second, memory, and the floor.

`python3 scripts/training_throughput.py` takes the GPU if the Python that runs ComfyUI can, else the CPU, where it takes
some minutes. The floor is what the operations would take at the rate of large matrix products. Pictures are in memory:
reading them is not measured.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from environment import enter
from full_size import BASE, SEED

if TYPE_CHECKING:
    import torch
    from dreamcache.dreamcache_core import Batch, Trainer

PAPER_SAMPLES = 200_000 * 48


def main() -> None:
    options = _options()
    environment = enter()
    import torch
    from generated_weights import write_models

    from dreamcache_core.train import PRECISIONS, import_pack

    checkpoint = BASE / "models" / "checkpoints" / write_models(BASE / "models", "SD15", SEED)
    cuda = torch.cuda.is_available() and not options.cpu
    import_pack(environment.comfyui, cpu=not cuda)
    import comfy.sd
    from dreamcache.dreamcache_core import Trainer, TrainingSettings, untrained_adapter
    from dreamcache.dreamcache_core.estimate import measure
    from dreamcache.nodes import patching
    from dreamcache.nodes.frozen_base import ComfyUIBase

    precision = PRECISIONS[options.precision or ("bfloat16" if cuda else "float32")]
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    adapter = untrained_adapter(patching.structure_of(model), SEED).to(model.load_device)
    base = ComfyUIBase(model, vae, clip, adapter, precision, options.checkpointing)
    base.load()

    rate = matmul_rate(base.device, precision)
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{name}, {precision}, torch {torch.__version__}: {rate / 1e12:.3g} TFLOP/s in matrix products\n")
    (batch,) = next(batches(1, options.resolution))
    operations = count_operations(Trainer(base, adapter, TrainingSettings(batch=1)), batch)
    floor = rate / sum(operations.values())
    for part, count in operations.items():
        print(f"{part}: {count / 1e12:.3f} TFLOP a sample")
    print(f"floor: {floor:.3g} samples/s, {PAPER_SAMPLES / floor / 3600:,.0f} hours for the paper's samples\n")
    print("| batch | samples/s | of the floor | memory at the peak, GiB | hours for the paper's samples |")
    print("| --- | --- | --- | --- | --- |")
    for size in options.batch or ([8, 16, 32, 48, 64, 96] if cuda else [1]):
        trainer = Trainer(base, adapter, TrainingSettings(batch=size))
        try:
            cost = measure(trainer, batches(size, options.resolution), options.steps)
        except torch.OutOfMemoryError:
            print(f"| {size} | out of memory |")
            break
        speed, hours = cost.samples_per_second, PAPER_SAMPLES / cost.samples_per_second / 3600
        print(f"| {size} | {speed:.3g} | {speed / floor:.0%} | {cost.peak / 2**30:.2f} | {hours:,.0f} |", flush=True)


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


def count_operations(trainer: Trainer, batch: Batch) -> dict[str, int]:
    """What each part of a training step does for the one sample of a batch. The trainer takes that step."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    base = trainer.base
    latents = base.encode_images(batch.targets)
    picture, prompt = (count(lambda: base.encode_images(batch.targets)), count(lambda: base.encode_prompts(["a dog"])))
    with torch.no_grad():
        caching = count(lambda: base.cache(latents, latents))
    step = count(lambda: trainer.train([batch]))
    return {
        "encoding the target": picture,
        "encoding the reference": picture,
        "encoding the prompt": prompt,
        "caching pass": caching,
        "denoising, forwards and backwards": step - 2 * picture - prompt - caching,
    }


def batches(size: int, resolution: int) -> Iterator[list[Batch]]:
    """Noise in place of pictures, without end."""
    import torch
    from dreamcache.dreamcache_core import Batch

    for step in itertools.count():
        targets, references = torch.rand(
            2, size, 3, resolution, resolution, generator=torch.Generator().manual_seed(step)
        )
        yield [Batch(range(step * size, (step + 1) * size), targets, references, ["a dog on a beach"] * size)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure training on SD1.5 at full size.")
    parser.add_argument("--batch", type=int, nargs="+", help="sizes (default: 8…96, on the CPU 1)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="(default: bfloat16, on the CPU float32)")
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--checkpointing", action="store_true", help="as in training")
    parser.add_argument("--steps", type=int, default=3, help="that are measured (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
