"""The recipe of the demo model, step by step; each can be stopped at any moment, and goes on when it is run again.
What it makes lies in .dev/demo, but for what ships, which is put where it belongs.

make_demo.py artwork       fetches the subjects (with npm)
make_demo.py autoencoder   trains what turns pictures into latents and back
make_demo.py scenes        draws scenes and references, and encodes them
make_demo.py decoder       goes on with what turns latents into pictures
make_demo.py base          trains U-Net and text encoder, and writes the model's file
make_demo.py joint         trains the U-Net again, together with an adapter, and writes both files
make_demo.py export        writes both files of what joint has reached
make_demo.py adapter       trains another adapter by itself, and writes its file
make_demo.py gpu           goes on with both on a GPU
make_demo.py yardstick     trains what measures them, and puts it where tests find it
make_demo.py results       draws and measures, and writes tables and pictures of web/docs/demo_model.md
make_demo.py ablations     trains adapters that differ in one thing each, and measures them
make_demo.py learning      trains adapters from two starts and of fewer subjects, for web/docs/training.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from comfy.model_patcher import ModelPatcher  # noqa: E402
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
    composer,
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
from demo_recipe.page import DOCS, Page, fingerprint  # noqa: E402

STEPS = (
    *("artwork", "autoencoder", "scenes", "decoder", "base", "joint", "export", "adapter", "gpu"),
    *("yardstick", "results", "ablations", "learning"),
)
SHIPPED = environment.ROOT / "nodes" / "demo"
MODEL, ADAPTER = "model.safetensors", "adapter.safetensors"
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
            _make_joint(options.count or joint.STEPS, options.weights)
        case "export":
            _export(options.processes, options.weights)
        case "adapter":
            _make_adapter(options.count or adapter.STEPS, options.weights)
        case "gpu":
            _make_on_gpu(options.seconds, options.output or artwork.DEMO / "gpu", options.weights)
        case "yardstick":
            steps = options.count or yardstick.STEPS
            half = {name: tensor.half() for name, tensor in yardstick.train_yardstick(steps).items()}
            artwork.copy_some_held_out(YARDSTICK.parent)
            write_file(YARDSTICK, "demo yardstick", 1, package.provenance(steps=steps, batch=yardstick.BATCH), half)
        case "results":
            _make_results(options)
        case "ablations":
            _make_ablations(options)
        case "learning":
            _measure_learning(options)


def _make_base(steps: int) -> None:
    weights = load_file(package.AUTOENCODER)
    weights |= base.train_base(demo_network.demo_networks(weights), steps)
    # The same latents, and better pictures of them.
    weights |= load_file(package.DECODER)
    _write_model(package.BASE, weights, f"{steps:,} of {base.BATCH} scenes")
    shutil.copy(package.BASE, SHIPPED / MODEL)


def _write_model(path: Path, weights: dict[str, torch.Tensor], *trainings: str) -> None:
    """`trainings`: all that it has had, in words."""
    networks = demo_network.demo_networks(weights)
    header = package.provenance(steps=_THEN.join(trainings))
    header["rgb_factors"] = package.rgb_factors(
        lambda images: networks.model.model.process_latent_in(networks.vae.encode(images))
    )
    package.write_model(path, demo_network.FILE_KIND, demo_network.FILE_VERSION, weights, header)


def _trainings(model: Path) -> list[str]:
    """What the model's file says of them, in their order."""
    return str(json.loads(read_tensors(model)[0]["header"])["steps"]).split(_THEN)


def _make_joint(steps: int, folder: Path) -> None:
    backgrounds = composer.draw_backgrounds()
    processes = join_processes(args.cpu)
    training = adapter.Training(demo_network.demo_networks(_without_unet()))
    drawn = composer.Composer(training.networks, backgrounds)
    begun = training.untrained(adapter.AS_IT_SHIPS)
    trained = joint.train_together(training, begun, drawn, processes, steps)
    if processes.is_main:
        _write_joint(trained, steps, processes.count, folder)


def _export(processes: int, folder: Path) -> None:
    training = adapter.Training(demo_network.demo_networks(_without_unet()))
    trained, steps = joint.load_reached(training, training.untrained(adapter.AS_IT_SHIPS))
    _write_joint(trained, steps, processes, folder)


def _without_unet() -> dict[str, torch.Tensor]:
    """The weights that `joint` keeps: those of the text encoder and the autoencoder that ship."""
    return {name: tensor for name, tensor in load_file(SHIPPED / MODEL).items() if not name.startswith("unet.")}


def _write_joint(trained: torch.nn.Module, steps: int, processes: int, folder: Path) -> None:
    """The files of what `joint` trained, whose losses are measured and printed."""
    # All that a U-Net was trained together with an adapter before isn't in this one, which began from nothing.
    earlier = [training for training in _trainings(SHIPPED / MODEL) if _TOGETHER not in training]
    count = joint.REFERENCES * processes
    batch = count * joint.READERS
    trainings = (*earlier, f"{steps:,} of {batch} {_TOGETHER}")
    _write_both(folder, _without_unet(), trained, trainings, steps, batch, steps * count)
    networks = demo_network.demo_networks(load_file(folder / MODEL))
    unseen = scenes.encode_scenes(networks, scenes.draw_scenes(evaluation.held_out_subjects(), [16], 512))
    base = adapter.Training(networks).base_of(load_adapter(folder / ADAPTER).adapter.float(), adapter.AS_IT_SHIPS)
    base.load()
    for reference, loss in joint.measure(base, unseen).items():
        print(f"loss of held-out scenes, {reference}: {loss:.4f}")


def _write_both(
    folder: Path,
    weights: dict[str, torch.Tensor],
    trained: torch.nn.Module,
    trainings: Sequence[str],
    steps: int,
    batch: int,
    triplets: int,
) -> None:
    """The files of the model and of the adapter. `trained`: both, `unet` and `adapter`. `weights`: of all else."""
    folder.mkdir(parents=True, exist_ok=True)
    unet: torch.nn.Module = trained.get_submodule("unet")
    together: Any = trained.get_submodule("adapter")
    weights = weights | {f"unet.{name}": tensor.cpu() for name, tensor in unet.state_dict().items()}
    _write_model(folder / MODEL, weights, *trainings)
    base_hash = weights_of(demo_network.demo_networks(load_file(folder / MODEL)).model).base_hash
    together.provenance = (*together.provenance, Provenance(base_hash, steps, batch, triplets))
    save_adapter(folder / ADAPTER, together, torch.float16, package.provenance())


def _make_adapter(steps: int, folder: Path) -> None:
    processes = join_processes(args.cpu)
    networks = demo_network.demo_networks(load_file(folder / MODEL))
    training = adapter.Training(networks)
    triplets = scenes.read_scenes()
    trainer = training.run(triplets, artwork.DEMO / "adapter", steps, adapter.AS_IT_SHIPS, processes)
    if not processes.is_main:
        return
    trained = trainer.finished_adapter(weights_of(networks.model).base_hash, len(triplets))
    path = folder / ADAPTER
    save_adapter(path, trained, torch.float16, package.provenance())
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _make_on_gpu(seconds: int, output: Path, folder: Path) -> None:
    """Goes on from what lies in `output`, or else from the files; with 0 seconds, it only writes these."""
    backgrounds = composer.draw_backgrounds()
    output.mkdir(parents=True, exist_ok=True)
    weights = load_file(folder / MODEL)
    networks = demo_network.demo_networks(weights)
    trained = load_adapter(folder / ADAPTER).adapter.float().to(loop.DEVICE).train()
    base = adapter.Training(networks).base_of(trained, adapter.AS_IT_SHIPS)
    base.load()
    drawn = composer.Composer(networks, backgrounds)
    on_gpu.say("backgrounds and references are on the GPU")
    steps = on_gpu.train_together(base, trained, drawn, seconds, output)
    both = torch.nn.ModuleDict({"unet": base.unet, "adapter": trained})
    batch = on_gpu.REFERENCES * joint.READERS
    trainings = (*_trainings(folder / MODEL), f"{steps:,} of {batch:,} {_TOGETHER}, on a GPU")
    _write_both(folder, weights, both, trainings, steps, batch, steps * on_gpu.REFERENCES)


def _make_results(options: argparse.Namespace) -> None:
    model, trained = (options.weights / name for name in (MODEL, ADAPTER))
    drawn = wrap_for_sampling(load_adapter(trained).adapter)
    page = Page(options.output or DOCS, fingerprint(model, trained))
    show = results.Results(*_studio(model), drawn, page, options.cases)
    parts = {"strip": show.write_strip, "sheet": show.write_sheet, "scores": show.write_scores}
    parts |= {"views": show.write_views, "pairs": show.write_pairs}
    for part in options.parts or parts:
        parts[part]()


def _make_ablations(options: argparse.Namespace) -> None:
    model = options.weights / MODEL
    studio, judge = _studio(model)
    steps = options.count or adapter.ABLATION_STEPS
    training, triplets = adapter.Training(studio.networks), scenes.read_scenes()
    unseen = scenes.encode_scenes(studio.networks, scenes.draw_scenes(evaluation.held_out_subjects(), [16], 512))

    def train(variant: adapter.Variant | None, seed: int) -> tuple[ModelPatcher | None, float]:
        if variant is None:
            return None, training.loss(unseen, training.untrained(adapter.AS_IT_SHIPS))
        folder = artwork.DEMO / "ablations" / f"{variant.name.replace(' ', '_')}_{seed}"
        trained = training.run(triplets, folder, steps, variant, seed=seed).averaged_adapter()
        return wrap_adapter(trained), training.loss(unseen, trained, variant)

    page = Page(options.output or DOCS, fingerprint(model))
    results.write_ablations(page, studio, judge, train, steps, options.cases or results.OF_VIEWS)


def _measure_learning(options: argparse.Namespace) -> None:
    model, trained = (options.weights / name for name in (MODEL, ADAPTER))
    studio, judge = _studio(model)
    unseen = scenes.encode_scenes(studio.networks, scenes.draw_scenes(evaluation.held_out_subjects(), [22], 96))
    learners = learning.Learners(
        studio, judge, scenes.read_scenes(), unseen, options.count or learning.STEPS, options.cases or learning.CASES
    )
    page = Page(options.output or DOCS, fingerprint(model, trained), "training.md")
    learning.write_learning(page, learners, load_adapter(trained).adapter.float())


def _studio(model: Path) -> tuple[evaluation.Studio, evaluation.Judge]:
    network = yardstick.Yardstick()
    network.load_state_dict(load_file(YARDSTICK))
    networks = demo_network.demo_networks(load_file(model))
    return evaluation.Studio(networks), evaluation.Judge(network)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--count", type=int, help="of scenes, or of steps of training")
    parser.add_argument("--cases", type=int, help="that are drawn and measured (default: as many as the page has)")
    parser.add_argument("--processes", type=int, default=1, help="that share the steps `joint` and `adapter`")
    parser.add_argument("--parts", nargs="+", help="of the results: strip, sheet, scores, views, pairs (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="that a GPU trains (default: %(default)s)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=SHIPPED,
        help="folder of the two files that a step from `joint` on writes or measures (default: where they ship from)",
    )
    parser.add_argument("--output", type=Path, help="folder for what a GPU trains, or for the page and its images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
