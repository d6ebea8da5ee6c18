"""The recipe of the demo model, step by step; each can be stopped at any moment, and goes on when it is run again.
What it makes lies in .dev/demo, but for what ships, which is put where it belongs.

make_demo.py artwork       fetches the subjects (with npm)
make_demo.py autoencoder   trains what turns pictures into latents and back
make_demo.py scenes        draws scenes and references, and encodes them
make_demo.py decoder       goes on with what turns latents into pictures
make_demo.py base          trains U-Net and text encoder, and writes the model's file
make_demo.py joint         goes on with the U-Net, together with an adapter
make_demo.py adapter       trains the adapter, and writes its file
make_demo.py gpu           goes on with both on a GPU
make_demo.py yardstick     trains what measures them, and puts it where tests find it
make_demo.py results       draws and measures, and writes tables and pictures of web/docs/demo_model.md
make_demo.py ablations     trains adapters that differ in one thing each, and measures them
make_demo.py learning      trains adapters from different starts and of fewer subjects, and prints their gaps
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import environment

# glibc gives the memory of a large tensor back at once, and getting it anew takes as long as computing what is in it.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
ENVIRONMENT = environment.enter(pack=False)

import torch  # noqa: E402

environment.import_pack(
    ENVIRONMENT,
    cpu=not torch.cuda.is_available(),
    # The quickest of ComfyUI's kinds of attention that has gradients, on a CPU too.
    use_pytorch_cross_attention=True,
    # Weights that are trained, on a GPU too, where ComfyUI halves them.
    force_fp32=True,
    fp32_text_enc=True,
    fp32_vae=True,
)

from comfy.cli_args import args  # noqa: E402
from dreamcache.dreamcache_core.adapter.file import load_adapter, save_adapter  # noqa: E402
from dreamcache.dreamcache_core.adapter.provenance import Provenance  # noqa: E402
from dreamcache.dreamcache_core.io.tensor_file import read_tensors, write_file  # noqa: E402
from dreamcache.dreamcache_core.training.processes import join_processes  # noqa: E402
from dreamcache.nodes.host import demo_network  # noqa: E402
from dreamcache.nodes.host.base_model import weights_of  # noqa: E402
from dreamcache.nodes.host.patching.injection import wrap_adapter, wrap_for_sampling  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from demo_recipe import (  # noqa: E402
    adapter,
    artwork,
    autoencoder,
    base,
    evaluation,
    joint,
    learning,
    loop,
    on_gpu,
    package,
    results,
    scenes,
    yardstick,
)

STEPS = (
    *("artwork", "autoencoder", "scenes", "decoder", "base", "joint", "adapter", "gpu"),
    *("yardstick", "results", "ablations", "learning"),
)
SHIPPED = environment.ROOT / "nodes" / "demo"
MODEL = SHIPPED / "model.safetensors"
ADAPTER = SHIPPED / "adapter.safetensors"
YARDSTICK = environment.ROOT / "tests" / "support" / "subjects" / "yardstick.safetensors"

_THEN, _TOGETHER = ", then ", "triplets together with an adapter"


def main() -> None:
    options = _options()
    if options.processes > 1 and "WORLD_SIZE" not in os.environ:
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}")
        sys.exit(subprocess.run([sys.executable, *launcher, *sys.argv], check=False).returncode)
    match options.step:
        case "artwork":
            artwork.fetch()
        case "autoencoder":
            weights = autoencoder.train_autoencoder(demo_network.DemoAutoencoder(), options.count or autoencoder.STEPS)
            save_file({f"autoencoder.{name}": tensor for name, tensor in weights.items()}, package.AUTOENCODER)
        case "decoder":
            network = demo_network.demo_networks(load_file(package.AUTOENCODER)).vae.first_stage_model
            weights = autoencoder.train_decoder(network, options.count or autoencoder.DECODER_STEPS)
            save_file({f"autoencoder.{name}": tensor for name, tensor in weights.items()}, package.DECODER)
        case "scenes":
            scenes.write_scenes(
                demo_network.demo_networks(load_file(package.AUTOENCODER)), options.count or scenes.COUNT
            )
        case "base":
            _make_base(options.count or base.STEPS)
        case "joint":
            _make_joint(options.count or joint.STEPS)
        case "adapter":
            _make_adapter(options.count or adapter.STEPS)
        case "gpu":
            _make_on_gpu(options.seconds, options.output)
        case "yardstick":
            steps = options.count or yardstick.STEPS
            half = {name: tensor.half() for name, tensor in yardstick.train_yardstick(steps).items()}
            artwork.copy_some_held_out(YARDSTICK.parent)
            write_file(YARDSTICK, "demo yardstick", 1, package.provenance(steps=steps, batch=yardstick.BATCH), half)
        case "results":
            _make_results(options)
        case "ablations":
            _make_ablations(options.count or adapter.ABLATION_STEPS)
        case "learning":
            networks = demo_network.demo_networks(load_file(MODEL))
            unseen = scenes.encode_scenes(networks, scenes.draw_scenes(evaluation.held_out_subjects(), [22], 192))
            learning.print_learning(adapter.Training(networks), scenes.read_scenes(), unseen, options.count or 160)


def _make_base(steps: int) -> None:
    weights = load_file(package.AUTOENCODER)
    weights |= base.train_base(demo_network.demo_networks(weights), steps)
    # The same latents, and better pictures of them.
    weights |= load_file(package.DECODER)
    _write_model(weights, f"{steps:,} of {base.BATCH} scenes")
    shutil.copy(MODEL, package.BASE)


def _write_model(weights: dict[str, torch.Tensor], *trainings: str) -> None:
    """`trainings`: all that it has had, in words."""
    networks = demo_network.demo_networks(weights)
    header = package.provenance(steps=_THEN.join(trainings))
    header["rgb_factors"] = package.rgb_factors(
        lambda images: networks.model.model.process_latent_in(networks.vae.encode(images))
    )
    package.write_model(MODEL, demo_network.FILE_KIND, demo_network.FILE_VERSION, weights, header)


def _trainings() -> list[str]:
    """What the model's file says of them, in their order."""
    return str(json.loads(read_tensors(MODEL)[0]["header"])["steps"]).split(_THEN)


def _make_joint(steps: int) -> None:
    processes = join_processes(args.cpu)
    weights = load_file(MODEL)
    networks = demo_network.demo_networks(weights)
    training = adapter.Training(networks)
    begun = training.untrained(adapter.AS_IT_SHIPS)
    if ADAPTER.exists():
        begun.load_state_dict(load_adapter(ADAPTER).adapter.state_dict())
    trained = joint.train_together(training, begun, scenes.read_scenes(), processes, steps)
    if processes.is_main:
        weights |= trained
        # Run again, it goes on: these steps are all that it has had.
        earlier = [training for training in _trainings() if not training.endswith(_TOGETHER)]
        _write_model(weights, *earlier, f"{steps:,} of {joint.BATCH * processes.count} {_TOGETHER}")


def _make_adapter(steps: int) -> None:
    processes = join_processes(args.cpu)
    networks = demo_network.demo_networks(load_file(MODEL))
    training = adapter.Training(networks)
    triplets = scenes.read_scenes()
    trainer = training.run(triplets, artwork.DEMO / "adapter", steps, adapter.AS_IT_SHIPS, processes)
    if not processes.is_main:
        return
    trained = trainer.finished_adapter(weights_of(networks.model).base_hash, len(triplets))
    save_adapter(ADAPTER, trained, torch.float16, package.provenance())
    print(f"{ADAPTER}: {ADAPTER.stat().st_size / 1e6:.1f} MB")


def _make_on_gpu(seconds: int, output: Path) -> None:
    clock = on_gpu.Clock(time.monotonic(), time.monotonic() + 0.5 * seconds, time.monotonic() + seconds)
    queue = on_gpu.start_drawing(on_gpu.workers())
    output.mkdir(parents=True, exist_ok=True)
    weights = load_file(MODEL)
    networks = demo_network.demo_networks(weights)
    file = load_adapter(ADAPTER)
    trained = file.adapter.float().to(loop.DEVICE).train()
    base = adapter.Training(networks).base_of(trained, adapter.AS_IT_SHIPS)
    contexts = on_gpu.contexts_of(base, [*on_gpu.all_captions(), ""])
    clock.say(f"{len(contexts)} captions are encoded")
    autoencoder = networks.vae.first_stage_model.to(loop.DEVICE)
    base.load()
    pool = on_gpu.Pool(
        queue, lambda images: networks.model.model.process_latent_in(autoencoder.encode(images * 2 - 1)), contexts
    )
    while pool.count < on_gpu.FIRST:
        pool.fill(wait=True)
    clock.say(f"{pool.count} scenes are drawn")
    steps = on_gpu.train_together(base, trained, pool, clock, output)
    steps_of_adapter = on_gpu.train_adapter(base, trained, pool, clock, output)
    weights |= {f"unet.{name}": tensor.cpu() for name, tensor in base.unet.state_dict().items()}
    _write_model(weights, *_trainings(), f"{steps:,} of {on_gpu.BATCH:,} {_TOGETHER}, on a GPU")
    provenance = Provenance(base.weights_hash, steps_of_adapter, on_gpu.BATCH, pool.count)
    trained.provenance = (*trained.provenance, provenance)
    save_adapter(ADAPTER, trained, torch.float16, package.provenance())


def _make_results(options: argparse.Namespace) -> None:
    studio, judge = _studio()
    trained = wrap_for_sampling(load_adapter(ADAPTER).adapter)
    parts = {"strip": results.write_strip, "sheet": results.write_sheet, "scores": results.write_scores}
    parts |= {"views": results.write_views, "pairs": results.write_pairs}
    for part in options.parts or parts:
        parts[part](studio, judge, trained)


def _make_ablations(steps: int) -> None:
    studio, judge = _studio(package.BASE)
    training, triplets = adapter.Training(studio.networks), scenes.read_scenes()
    unseen = scenes.encode_scenes(studio.networks, scenes.draw_scenes(evaluation.held_out_subjects(), [16], 512))
    ablations = {}
    for variant in adapter.VARIANTS:
        folder = artwork.DEMO / "ablations" / variant.name.replace(" ", "_")
        trained = training.run(triplets, folder, steps, variant).averaged_adapter()
        loss = training.loss(unseen, trained, variant)
        print(f"{variant.name}: loss of held-out scenes {loss:.4f}", flush=True)
        ablations[variant] = results.Ablation(wrap_adapter(trained), loss)
    without = training.loss(unseen, training.untrained(adapter.AS_IT_SHIPS))
    results.write_ablations(studio, judge, ablations, without)


def _studio(model: Path = MODEL) -> tuple[evaluation.Studio, evaluation.Judge]:
    network = yardstick.Yardstick()
    network.load_state_dict(load_file(YARDSTICK))
    networks = demo_network.demo_networks(load_file(model))
    return evaluation.Studio(networks), evaluation.Judge(network)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--count", type=int, help="of scenes, or of steps of training")
    parser.add_argument("--processes", type=int, default=1, help="that share the steps `joint` and `adapter`")
    parser.add_argument("--parts", nargs="+", help="of the results: strip, sheet, scores, views, pairs (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="that a GPU trains (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=artwork.DEMO / "gpu", help="for what it trains")
    return parser.parse_args()


if __name__ == "__main__":
    main()
