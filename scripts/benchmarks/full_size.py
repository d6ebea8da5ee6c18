"""Stable Diffusion at full size with generated weights, in a real server: what a reference costs in time and memory.

`python3 scripts/benchmarks/full_size.py` prints a table. On a CPU it takes a while; it wants 16 GB of memory and 5 GB
of disk.
`python3 scripts/benchmarks/full_size.py SDXL` wants 7 GB more, and takes longer. `--own-attention` uses the model's own
attention in place of an adapter; `--once` measures one picture of 512×512 alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.comfyui_server import ComfyUIServer, Prompt
from harness.environment import DEV, ROOT, enter
from harness.workflow_prompt import OWN_ATTENTION, basic_prompt, set_inputs, without_reference

BASE = DEV / "full_size"
SEED = 1
SIZES = ((512, 512, 1), (512, 512, 2), (520, 456, 1))
_HALF = ("--bf16-unet", "--fp16-text-enc")


def main() -> None:
    options = _options()
    environment = enter()
    from harness.generated_weights import write_models

    print(f"{platform.machine()}, {os.cpu_count()} cores; two rows a picture, for the two prompts\n")
    print("| model | picture | step, s | with reference, s | ratio | encode, s | peak, GiB | with reference, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for family in options.families or ("SD15", "SD20"):
        name = write_models(BASE / "models", family, SEED)
        with ComfyUIServer(environment, {"dreamcache": ROOT}, BASE, server_arguments(family)) as server:
            for size in SIZES[:1] if options.once else SIZES:
                plain, reading = measure(server, name, size, OWN_ATTENTION[0] if options.own_attention else name)
                ratio = reading.step / plain.step
                times = f"{plain.step:.1f} | {reading.step:.1f} | {ratio:.3f} | {reading.start:.1f}"
                peaks = f"{plain.peak / 2**30:.2f} | {reading.peak / 2**30:.2f}"
                print(f"| {family} | {size[0]}×{size[1]}, batch {size[2]} | {times} | {peaks} |", flush=True)


def server_arguments(family: str) -> tuple[str, ...]:
    """In float32, as ComfyUI has them on a CPU, SDXL's networks take 14 GB, so they compute in half the precision."""
    return ("--cpu", *(_HALF if family == "SDXL" else ()))


@dataclass(frozen=True)
class Cost:
    """Seconds a step; seconds that only the first run takes, to load and to encode; bytes of memory at the peak."""

    step: float
    start: float
    peak: int


def measure(server: ComfyUIServer, checkpoint: str, size: tuple[int, int, int], adapter: str) -> list[Cost]:
    """Cost without and with a reference. The two take turns, so that a busy machine troubles both."""

    def run(reference: bool, steps: int, seed: int) -> tuple[float, int]:
        prompt = workflow(server, checkpoint, size, adapter)
        set_inputs(prompt, "KSampler", steps=steps, seed=seed)
        # Another seed for another size: the cache of the size before would do, and there would be nothing to measure.
        set_inputs(prompt, "DreamCacheEncodeReference", seed=SIZES.index(size))
        server.reset_peak_memory()
        seconds = server.run(prompt if reference else without_reference(prompt), timeout=3600).seconds
        return seconds, server.memory("VmHWM")

    runs = [[run(reference, steps, seed) for reference in (False, True)] for steps, seed in ((1, 1), (1, 2), (3, 2))]
    return [
        Cost(step=(three - one) / 2, start=first - one, peak=max(peaks))
        for (first, one, three), peaks in (zip(*kind, strict=True) for kind in zip(*runs, strict=True))
    ]


def workflow(server: ComfyUIServer, checkpoint: str, size: tuple[int, int, int], adapter: str | None = None) -> Prompt:
    """The shipped workflow on the photograph, for pictures of `size` (width, height, batch).

    `adapter`: the one of the checkpoint's name by default.
    """
    width, height, batch = size
    prompt = basic_prompt(server, checkpoint=checkpoint, adapter=adapter or checkpoint)
    set_inputs(prompt, "EmptyLatentImage", width=width, height=height, batch_size=batch)
    return prompt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a reference costs in a real server, at full size.")
    parser.add_argument("families", nargs="*", help="SD15, SD20, SDXL (default: SD15 SD20)")
    parser.add_argument("--own-attention", action="store_true", help="use the model's own attention, not an adapter")
    parser.add_argument("--once", action="store_true", help="measure one picture of 512×512 alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
