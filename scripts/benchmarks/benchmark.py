"""What a reference costs in time, memory and operations, beside the plain model and beside IP-Adapter.

`python3 scripts/benchmarks/benchmark.py` takes the GPU if the Python that runs ComfyUI can, else one thread of the CPU,
where it takes an hour and 20 GB of memory. It writes `speed.md`, `speed.json` and a plot.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.full_size import BASE, SEED
from harness.comfyui_server import ComfyUIServer
from harness.environment import ROOT, Environment, enter, import_pack

if TYPE_CHECKING:
    import torch
    from benchmarks.speed.measuring import StepCost
    from benchmarks.speed.page import Operations, Results, Start
    from benchmarks.speed.variants import Bench
    from dreamcache.dreamcache_core.reference.cache import ReferenceCache

COUNTED_SIZES = (512, 768, 1024)
DEMO_SIZE = 128
RUNS = 100


def main() -> None:
    options = _options()
    environment = enter(pack=False)
    import torch
    from benchmarks.speed.steady import use_one_heap
    from harness.generated_weights import write_models

    cuda = torch.cuda.is_available() and not options.cpu
    if not cuda:
        use_one_heap()
        torch.set_num_threads(1)
    import_pack(environment, cpu=not cuda)
    options.sizes = options.sizes or ([512, 768, 1024] if cuda else [512])
    options.batches = options.batches or ([1, 4, 8] if cuda else [1])
    options.steps = options.steps or (20 if cuda else 2)
    name = write_models(BASE / "models", "SD15", SEED)
    checkpoint, adapter = (BASE / "models" / folder / name for folder in ("checkpoints", "dreamcache"))
    from benchmarks.speed.page import PLOT, markdown, plot, read
    from benchmarks.speed.variants import PLAIN, VARIANTS

    options.variants = {name: VARIANTS[name] for name in (PLAIN, *(options.variants or VARIANTS))}
    written = options.output / "speed.json"
    with torch.inference_mode():
        if options.add:
            results = with_more_steps(read(written), checkpoint, adapter, options)
        else:
            results = benchmark(environment, checkpoint, adapter, options)
    text = json.dumps(asdict(results), indent=1)
    written.write_text(text)
    (options.output / "speed.md").write_text(markdown(results))
    (options.output / PLOT).parent.mkdir(exist_ok=True)
    plot(results).save(options.output / PLOT, optimize=True)
    print(markdown(results))


def benchmark(environment: Environment, checkpoint: Path, adapter: Path, options: argparse.Namespace) -> Results:
    import torch
    from benchmarks.speed.page import Results
    from benchmarks.speed.sizes import measure_files, measure_noise_levels

    bench, clip, vae = load_bench(checkpoint, adapter)
    model = bench.model
    name = (
        torch.cuda.get_device_name()
        if model.load_device.type == "cuda"
        else f"{platform.machine()}, CPU time of 1 thread"
    )
    machine = f"{name}, {model.model.get_dtype_inference()}, torch {torch.__version__}, {options.steps} of each step"

    steps = measure_sizes(bench, options)
    cache, starts = measure_starts(model, clip, vae)
    seconds = {**measure_handling(bench, adapter), **measure_queue(environment, checkpoint)}
    operations = count_operations({*COUNTED_SIZES, *options.sizes}, bool(options.ipadapter_plus))
    _say("steps of the demo model")
    demo_steps, demo_operations = measure_demo(options)
    sizes = {**measure_files(adapter, cache), **measure_noise_levels(bench), **measure_runs(environment)}
    return Results(machine, operations, steps, starts, seconds, sizes, demo_steps, demo_operations)


def with_more_steps(results: Results, checkpoint: Path, adapter: Path, options: argparse.Namespace) -> Results:
    """Results, with steps of the options' sizes and batches in addition to theirs, or in their place."""
    from benchmarks.speed.sizes import measure_noise_levels
    from benchmarks.speed.variants import IPADAPTER_PLUS, PLAIN

    with_ipadapter_plus = bool(options.ipadapter_plus) or IPADAPTER_PLUS in results.operations
    operations = count_operations({*results.operations[PLAIN], *options.sizes}, with_ipadapter_plus)
    bench, *_ = load_bench(checkpoint, adapter)
    steps = {(cost.size, cost.batch, cost.variant): cost for cost in [*results.steps, *measure_sizes(bench, options)]}
    sizes = {**results.bytes, **measure_noise_levels(bench)}
    return replace(results, operations=operations, steps=list(steps.values()), bytes=sizes)


def count_operations(sizes: set[int], ipadapter_plus: bool) -> Operations:
    """Of a step of every variant, IPAdapter_plus among them or not."""
    from benchmarks.speed.counting import bench_on_paper, count_step
    from benchmarks.speed.variants import IPADAPTER, IPADAPTER_PLUS, VARIANTS

    _say("operations")
    paper = bench_on_paper()
    operations = {
        variant: {size: count_step(patch(paper), size) for size in sorted(sizes)} for variant, patch in VARIANTS.items()
    }
    if ipadapter_plus:
        # It asks the device for the timestep in every layer, so it can't be counted; it must do no less than this.
        operations[IPADAPTER_PLUS] = operations[IPADAPTER]
    return operations


def load_bench(checkpoint: Path, adapter: Path) -> tuple[Bench, Any, Any]:
    """The model at full size, and its CLIP and VAE."""
    import comfy.sd
    from benchmarks.speed.counting import bench_on_paper
    from benchmarks.speed.variants import Bench
    from dreamcache.dreamcache_core.adapter.file import load_adapter

    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    plain, paper = model, bench_on_paper()
    if model.load_device.type != "cuda":
        plain, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)
    bench = Bench(model, plain, load_adapter(adapter).adapter, lambda count: _filled(paper.references(count)))
    return bench, clip, vae


def measure_sizes(bench: Bench, options: argparse.Namespace) -> list[StepCost]:
    from benchmarks.speed.measuring import measure_steps
    from benchmarks.speed.variants import IPADAPTER_PLUS, ipadapter_plus
    from dreamcache.dreamcache_core.launch import import_folder

    variants = dict(options.variants)
    if options.ipadapter_plus:
        variants[IPADAPTER_PLUS] = ipadapter_plus(import_folder(options.ipadapter_plus, "ipadapter_plus"))
    steps: list[StepCost] = []
    for size in options.sizes:
        for batch in options.batches:
            _say(f"steps at {size}×{size}, batch {batch}")
            steps += measure_steps(bench, variants, size, batch, options.steps)
    return steps


def measure_demo(options: argparse.Namespace) -> tuple[list[StepCost], Operations]:
    """Steps of the model that comes with the nodes, and their operations."""
    from benchmarks.speed.counting import bench_on_paper, count_step
    from benchmarks.speed.measuring import measure_steps
    from benchmarks.speed.variants import VARIANTS, Bench
    from dreamcache.dreamcache_core.adapter.file import load_adapter
    from dreamcache.nodes import demo_model
    from dreamcache.nodes.host.demo_network import demo_config

    paper = bench_on_paper(demo_config(), DEMO_SIZE)
    adapter = load_adapter(demo_model.FOLDER / demo_model.ADAPTER_FILE).adapter
    model, plain = (demo_model.load_networks().model for _ in range(2))
    bench = Bench(model, plain, adapter, lambda count: _filled(paper.references(count)))
    steps: list[StepCost] = []
    for batch in options.batches:
        steps += measure_steps(bench, options.variants, DEMO_SIZE, batch, 10 * options.steps)
    return steps, {variant: {DEMO_SIZE: count_step(patch(paper), DEMO_SIZE)} for variant, patch in VARIANTS.items()}


def _filled(cache: ReferenceCache) -> ReferenceCache:
    """The same cache with noise in place of tensors on the meta device."""
    import torch
    from dreamcache.dreamcache_core.reference.cache import CachingInput

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape)

    batches = (
        replace(
            batch,
            features={layer: noise(tensor) for layer, tensor in batch.features.items()},
            caching_inputs=tuple(
                CachingInput(noise(given.latent), noise(given.noise), noise(given.context))
                for given in batch.caching_inputs
            ),
        )
        for batch in cache.batches
    )
    return replace(cache, batches=tuple(batches))


def measure_starts(model: Any, clip: Any, vae: Any) -> tuple[ReferenceCache, list[Start]]:
    """Ways from a picture to the first step. Returns the picture's reference cache, too."""
    import torch
    from benchmarks.speed.page import ENCODING, VISION
    from comfy.clip_vision import load as load_vision
    from dreamcache.dreamcache_core.evaluation.subjects import load_masked_image
    from dreamcache.dreamcache_core.reference.file import load_references, save_references
    from dreamcache.dreamcache_core.unet import DEFAULT_STAGES
    from dreamcache.nodes.encode_reference import DreamCacheEncodeReference
    from dreamcache.nodes.host.patching.caching_pass import record_references
    from dreamcache.nodes.host.reference import PROMPT, TIMESTEP
    from harness.generated_weights import write_clip_vision
    from harness.workflow_prompt import PHOTOGRAPH

    image = load_masked_image(PHOTOGRAPH).image.unsqueeze(0)
    latent = torch.zeros(1, 4, 64, 64)
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))

    def encode() -> ReferenceCache:
        return DreamCacheEncodeReference.execute(model, vae, image, clip, TIMESTEP, 0, 512)[0]

    def encode_latent() -> ReferenceCache:
        return record_references(model, latent, latent, prompt, TIMESTEP, PROMPT)

    device = model.load_device
    whole, cache = _measure_start(ENCODING, device, lambda: encode)
    network, _ = _measure_start("the U-Net's pass alone", device, lambda: encode_latent)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.safetensors")
        write_clip_vision(path, SEED)
        vision, _ = _measure_start(VISION, device, lambda: partial(load_vision(str(path)).encode_image, image))
        save_references(path, cache, stages=DEFAULT_STAGES)
        loading, _ = _measure_start("Load Reference Cache", device, lambda: partial(load_references, path))
    return cache, [whole, network, loading, vision]


def _measure_start(way: str, device: torch.device, load: Callable[[], Callable[[], Any]]) -> tuple[Start, Any]:
    """`load` returns what is done with each picture. Returns what that made, too."""
    from benchmarks.speed.measuring import Stopwatch
    from benchmarks.speed.page import Start
    from benchmarks.speed.steady import steady
    from torch.utils.flop_counter import FlopCounterMode

    _say(way)
    stopwatch = Stopwatch(device)
    loaded: list[Callable[[], Any]] = []
    made: list[Any] = []
    with steady(device):
        with FlopCounterMode(display=False) as counter:
            first = stopwatch(lambda: loaded.append(load())) + stopwatch(lambda: made.append(loaded[0]()))
        again = stopwatch(loaded[0])
    return Start(way, first, again, counter.get_total_flops() or None), made[0]


def measure_handling(bench: Bench, adapter: Path) -> dict[str, float]:
    """Seconds that it takes to get ready, for `adapter`, a file."""
    from benchmarks.speed.measuring import Stopwatch
    from dreamcache.dreamcache_core.adapter.file import load_adapter
    from dreamcache.nodes.apply import ApplyDreamCache
    from dreamcache.nodes.host.patching.injection import wrap_for_sampling

    cache, stopwatch = bench.references(1), Stopwatch(bench.model.load_device)
    patcher = wrap_for_sampling(bench.adapter)
    reading = bench.reading()
    return {
        "Adapter Loader": stopwatch.median(lambda: wrap_for_sampling(load_adapter(adapter).adapter)),
        "Apply DreamCache, which clones the model": stopwatch.median(
            lambda: ApplyDreamCache.execute(bench.model, patcher, cache, 1.0, 0.0, 1.0, 1.0, "both")
        ),
        "patching the network": stopwatch.median(lambda: reading.patch_model(load_weights=False)),
        "unpatching it": stopwatch.median(lambda: reading.unpatch_model(unpatch_weights=False)),
    }


def measure_queue(environment: Environment, checkpoint: Path) -> dict[str, float]:
    """Seconds by the clock, in a real server, until a reference is there that wasn't, and that was."""
    from harness.workflow_prompt import PHOTOGRAPH

    _say("queueing in a server")
    with ComfyUIServer(environment, {"dreamcache": ROOT}) as server:
        (server.base / "models" / "checkpoints" / checkpoint.name).symlink_to(checkpoint)
        model, picture = ["1", 0], server.upload_image(PHOTOGRAPH)
        encode = {"timestep": 1, "seed": 0, "resolution": 512}
        prompt = {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}},
            "2": {"class_type": "LoadImage", "inputs": {"image": picture}},
            "3": {
                "class_type": "DreamCacheEncodeReference",
                "inputs": {"model": model, "clip": ["1", 1], "vae": ["1", 2], "image": ["2", 0], **encode},
            },
            "4": {"class_type": "DreamCachePreviewReferenceCache", "inputs": {"reference_cache": ["3", 0]}},
        }
        first, second = (server.run(prompt, timeout=3600).seconds for _ in range(2))
    return {"queue that loads a checkpoint and encodes (by the clock)": first, "the same queue again": second}


def measure_runs(environment: Environment) -> dict[str, int]:
    """Bytes that a real server gains in queued runs of the demo model, each with a reference of its own."""
    from harness.workflow_prompt import demo_prompt, set_inputs

    _say(f"{RUNS} queued runs")
    held = []
    with ComfyUIServer(environment, {"dreamcache": ROOT}) as server:
        prompt = demo_prompt(server)
        set_inputs(prompt, "KSampler", steps=2)
        for run in range(10 + RUNS):
            set_inputs(prompt, "DreamCacheEncodeReference", seed=run)
            server.run(prompt)
            held.append(server.memory("VmRSS"))
    # Medians, for what is free but not yet given back comes and goes by more than references take.
    before, after = (statistics.median(some) for some in (held[:10], held[-10:]))
    names = f"server after {RUNS} queued runs, each with another reference", "gained in them"
    return dict(zip(names, (round(after), round(after - before)), strict=True))


def _say(what: str) -> None:
    print(f"{what} …", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a reference costs, on SD1.5 at full size.")
    parser.add_argument("--sizes", type=int, nargs="+", help="of pictures (default: 512 768 1024; on the CPU 512)")
    parser.add_argument("--batches", type=int, nargs="+", help="sizes of batches (default: 1 4 8; on the CPU 1)")
    parser.add_argument("--steps", type=int, help="measured of each variant (default: 20; on the CPU 2)")
    parser.add_argument("--variants", nargs="+", help="by their names in the table (default: all)")
    parser.add_argument("--ipadapter-plus", type=Path, help="folder of IPAdapter_plus, to be measured too")
    parser.add_argument("--add", action="store_true", help="measure steps alone, and add them to what is written")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--output", type=Path, default=ROOT / "web" / "docs", help="folder (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
