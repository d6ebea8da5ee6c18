"""Train an adapter from the command line, on a checkpoint that ComfyUI loads:

    python -m dreamcache_core.train --comfyui ~/ComfyUI --checkpoint sd15.safetensors --data triplets --output trained

Run again, it goes on where it stopped. `--help` lists the settings; `--config` takes them from a JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .training import TrainingSettings

PACK = Path(__file__).resolve().parents[1]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    options = _options()
    # Of the pack as ComfyUI imports it, whose core is another copy of this one.
    core: Any = _import_pack(options.comfyui, options.cpu).dreamcache_core
    settings = core.TrainingSettings(**{field.name: getattr(options, field.name) for field in _SETTINGS})
    try:
        _train(core, options, settings)
    except core.DreamCacheError as error:
        sys.exit(str(error))


def _train(core: Any, options: argparse.Namespace, settings: Any) -> None:
    import comfy.sd

    frozen_base = importlib.import_module(f"{core.__package__.partition('.')[0]}.nodes.frozen_base")
    triplets = core.open_triplets(options.data)
    print(triplets.description)
    print(f"Loading {options.checkpoint} …", flush=True)
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(options.checkpoint))
    adapter = core.untrained_adapter(frozen_base.patching.structure_of(model), settings.seed).to(model.load_device)
    print(f"{adapter.parameter_count:,} parameters for {adapter.base_model}")
    base = frozen_base.ComfyUIBase(
        model, vae, clip, adapter, PRECISIONS[options.precision], checkpointing=options.checkpointing
    )
    base.load()
    trainer = core.Trainer(base, adapter, settings)
    done = core.resume(trainer, options.output)
    if done:
        print(f"Going on after step {done:,}.")
    batches = core.make_batches(
        triplets, settings, options.resolution, first_step=done, parts=options.parts, workers=options.workers
    )
    for progress in core.run(trainer, batches, options.output, options.every):
        print(
            f"step {progress.step:,} of {settings.steps:,}: loss {progress.loss:.4f}, learning rate "
            f"{progress.learning_rate:.2e}, {progress.samples_per_second:.2f} samples/s",
            flush=True,
        )
        if progress.step % options.every == 0 or progress.step == settings.steps:
            trained = core.trained_adapter(trainer, base.weights_hash, len(triplets))
            core.save_adapter(options.output / "adapter.safetensors", trained)
    print(f"The adapter is {(options.output / 'adapter.safetensors').resolve()}.")


_SETTINGS = dataclasses.fields(TrainingSettings)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dreamcache_core.train", description=__doc__.partition("\n")[0])
    required = parser.add_argument_group("what to train on")
    required.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    required.add_argument("--checkpoint", type=Path, required=True, help="file of the base model")
    required.add_argument("--data", type=Path, required=True, help="folder of triplets")
    required.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the adapter")
    parser.add_argument("--config", type=Path, help="JSON file of settings, which the command line overrides")
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--parts", type=int, default=1, help="cut each batch into so many parts, to save memory")
    parser.add_argument("--checkpointing", action="store_true", help="save more memory, for time")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
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


def _import_pack(comfyui: Path, cpu: bool) -> ModuleType:
    """Import this repository as ComfyUI does with a folder of custom_nodes."""
    if not (comfyui / "comfy").is_dir():
        sys.exit(f"{comfyui} is not a ComfyUI folder: give the one that holds its main.py.")
    # First, for ComfyUI has a module `nodes`, as this repository has a folder.
    sys.path.insert(0, str(comfyui.resolve()))
    from comfy.cli_args import args

    args.cpu = cpu or not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        "dreamcache", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader
    sys.modules["dreamcache"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
