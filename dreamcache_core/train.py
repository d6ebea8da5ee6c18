"""Train an adapter from the command line, on a checkpoint that ComfyUI loads:

    python -m dreamcache_core.train --comfyui ~/ComfyUI --checkpoint sd15.safetensors --data triplets --output trained

Run again, it goes on where it stopped. `--help` lists the settings; `--config` takes them from a JSON file. On several
GPUs or machines: `accelerate launch -m dreamcache_core.train …`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .adapter.file import save_adapter
from .adapter.network import untrained_adapter
from .errors import DreamCacheError
from .io.disk_cache import DiskCache
from .training.batches import make_batches
from .training.estimate import describe, measure
from .training.log import TrainingLog
from .training.processes import Processes, join_processes
from .training.session import resume, run
from .training.settings import TrainingSettings
from .training.trainer import Trainer
from .training.triplets import Triplets, open_triplets

PACK = Path(__file__).resolve().parents[1]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    options = _options()
    cpu = options.cpu or not torch.cuda.is_available()
    try:
        processes = join_processes(cpu)
    except DreamCacheError as error:
        sys.exit(str(error))
    pack = import_pack(options.comfyui, cpu)
    # The pack's copy of this module, for the nodes use the pack's copy of the core.
    importlib.import_module(f"{pack.__name__}.dreamcache_core.train").train(options, processes)


def train(options: argparse.Namespace, processes: Processes) -> None:
    """The command, in the pack as ComfyUI imports it. What goes wrong ends it with a sentence."""
    try:
        _train(options, processes)
    except DreamCacheError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on after the last checkpoint.")


def _train(options: argparse.Namespace, processes: Processes) -> None:
    import comfy.sd

    from ..nodes.host.base_model import structure_of
    from ..nodes.host.frozen_base import ComfyUIBase

    settings = TrainingSettings(**{field.name: getattr(options, field.name) for field in _SETTINGS})
    say = processes.say
    triplets = open_triplets(options.data)
    say(triplets.description)
    say(f"Loading {options.checkpoint} …")
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(options.checkpoint))
    adapter = untrained_adapter(structure_of(model), settings.seed).to(model.load_device)
    together = f", trained by {processes.count} processes" if processes.count > 1 else ""
    say(f"{adapter.parameter_count:,} parameters for {adapter.base_model}{together}")
    say(f"layers: {', '.join(layer.name for layer in adapter.layers)}")
    disk_cache = DiskCache(options.cache_latents) if options.cache_latents and not options.dry_run else None
    base = ComfyUIBase(
        model, vae, clip, adapter, PRECISIONS[options.precision], options.checkpointing, disk_cache=disk_cache
    )
    base.load()
    trainer = Trainer(base, adapter, settings, processes.average)
    batches = partial(
        make_batches,
        triplets,
        settings,
        options.resolution,
        parts=options.parts,
        process=processes.index,
        processes=processes.count,
        workers=options.workers,
    )
    if options.dry_run:
        say(describe(trainer, measure(trainer, batches()), len(triplets), options.output))
        return
    done = resume(trainer, options.output)
    if processes.average(torch.tensor(done, dtype=torch.float64, device=base.device)) != done:
        raise DreamCacheError(
            f"Process {processes.index} goes on after step {done} and others after another: give an output folder that "
            "all machines share."
        )
    if done:
        say(f"Going on after step {done:,}.")
    steps = run(trainer, batches(first_step=done), options.output, options.every, save=processes.is_main)
    if not processes.is_main:
        collections.deque(steps, maxlen=0)
        return
    log = TrainingLog(options.output, settings.steps, done, options.tensorboard)
    sheet = _sample_sheet(options, triplets, model, clip, vae) if options.sample_every else None
    for progress in steps:
        log.add_step(progress)
        last = progress.step == settings.steps
        if progress.step % options.every == 0 or last:
            trained = trainer.finished_adapter(base.weights_hash, len(triplets))
            save_adapter(options.output / "adapter.safetensors", trained)
        if sheet and (progress.step % options.sample_every == 0 or last):
            log.add_sheet(sheet.generate(trainer.averaged_adapter(), f"step {progress.step:,}"), progress.step)
            base.load()
    log.close()
    say(f"The adapter is {(options.output / 'adapter.safetensors').resolve()}.")


def _sample_sheet(options: argparse.Namespace, triplets: Triplets, model: Any, clip: Any, vae: Any) -> Any:
    """Of the prompts of a file, or of some of the data, each with a reference of the data."""
    from ..nodes.host.generation import GenerationSettings, SampleSheet, choose_samples

    prompts: list[str] = []
    if options.sample_prompts:
        if not options.sample_prompts.is_file():
            raise DreamCacheError(f"{options.sample_prompts} is not there: give a text file with a prompt a line.")
        prompts = options.sample_prompts.read_text(encoding="utf-8").splitlines()
    settings = GenerationSettings(steps=options.sample_steps, resolution=options.resolution)
    return SampleSheet(model, clip, vae, *choose_samples(triplets, prompts, options.resolution), settings)


_SETTINGS = dataclasses.fields(TrainingSettings)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dreamcache_core.train", description=__doc__.partition("\n")[0])
    required = parser.add_argument_group("what to train on")
    required.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    required.add_argument("--checkpoint", type=Path, required=True, help="file of the base model")
    required.add_argument("--data", type=Path, required=True, help="folder of triplets")
    required.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the adapter")
    parser.add_argument("--config", type=Path, help="JSON file of settings, which the command line overrides")
    parser.add_argument("--dry-run", action="store_true", help="measure some steps, say what training takes, and stop")
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--parts", type=int, default=1, help="cut each batch into so many parts, to save memory")
    parser.add_argument("--checkpointing", action="store_true", help="save more memory, for time")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: %(default)s)")
    parser.add_argument("--cache-latents", type=Path, help="folder that keeps latents and prompts for later epochs")
    parser.add_argument("--every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    seen = parser.add_argument_group("what to see of it")
    seen.add_argument("--tensorboard", action="store_true", help="write events to the output folder's logs")
    seen.add_argument("--sample-every", type=int, default=0, help="steps between sheets of samples (default: none)")
    seen.add_argument(
        "--sample-prompts", type=Path, help="text file of prompts, one a line (default: some of the data)"
    )
    seen.add_argument("--sample-steps", type=int, default=20, help="of the sampler (default: %(default)s)")
    settings = parser.add_argument_group("settings")
    for field in _SETTINGS:
        kind = {"action": argparse.BooleanOptionalAction} if field.type == "bool" else {"type": type(field.default)}
        name = f"--{field.name.replace('_', '-')}"
        settings.add_argument(name, default=field.default, help="(default: %(default)s)", **kind)
    options = parser.parse_args()
    if options.config:
        config = json.loads(options.config.read_text(encoding="utf-8"))
        unknown = config.keys() - vars(options).keys()
        if unknown:
            parser.error(f"{options.config} has settings that don't exist: {', '.join(sorted(unknown))}")
        parser.set_defaults(**config)
        options = parser.parse_args()
    return options


def import_pack(comfyui: Path, cpu: bool) -> ModuleType:
    """Import this repository as ComfyUI does with a folder of custom_nodes, under the name `dreamcache`.

    `comfyui`: its folder, which is made importable. `cpu`: whether ComfyUI leaves the GPU alone.
    """
    if not (comfyui / "comfy").is_dir():
        sys.exit(f"{comfyui} is not a ComfyUI folder: give the one that holds its main.py.")
    # First, for ComfyUI has a module `nodes`, as this repository has a folder.
    sys.path.insert(0, str(comfyui.resolve()))
    from comfy.cli_args import args

    args.cpu = cpu
    return import_folder(PACK, "dreamcache")


def import_folder(folder: Path, name: str) -> ModuleType:
    """Import a folder of custom_nodes as ComfyUI does, but under `name`."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
