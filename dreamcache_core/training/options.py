"""The options of the training command."""

from __future__ import annotations

import argparse
import dataclasses
import json

import torch

from ..generation import GenerationSettings
from ..io.names import path_option
from .settings import PRECISIONS, TrainingSettings

_SETTINGS = dataclasses.fields(TrainingSettings)


def read_options() -> argparse.Namespace:
    """The command's options: those of the command line, over those of its `--config`. Ends the process if one is wrong.

    `cpu` is also true where there is no GPU.
    """
    parser = _parser()
    options = parser.parse_args()
    if options.config:
        config = json.loads(options.config.read_text(encoding="utf-8"))
        unknown = config.keys() - vars(options).keys()
        if unknown:
            parser.error(f"{options.config} has settings that don't exist: {', '.join(sorted(unknown))}")
        parser.set_defaults(**config)
        options = parser.parse_args()
    options.cpu = options.cpu or not torch.cuda.is_available()
    return options


def settings_of(options: argparse.Namespace) -> TrainingSettings:
    return TrainingSettings(**{field.name: getattr(options, field.name) for field in _SETTINGS})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dreamcache_core.train",
        description="Train an adapter from the command line, on a checkpoint that ComfyUI loads.",
    )
    required = parser.add_argument_group("what to train on")
    required.add_argument("--comfyui", type=path_option, required=True, help="ComfyUI's folder")
    required.add_argument("--checkpoint", type=path_option, required=True, help="file of the base model")
    required.add_argument("--data", type=path_option, required=True, help="folder of triplets")
    required.add_argument("--output", type=path_option, required=True, help="folder for checkpoints and the adapter")
    parser.add_argument("--config", type=path_option, help="JSON file of options, which the command line overrides")
    parser.add_argument("--dry-run", action="store_true", help="measure some steps, say what training takes, and stop")
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--parts", type=int, default=1, help="micro-batches to cut each batch into, to save memory")
    parser.add_argument("--checkpointing", action="store_true", help="save more memory, at the cost of time")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: %(default)s)")
    parser.add_argument(
        "--cache-latents", type=path_option, help="folder that keeps latents and prompts for later epochs"
    )
    parser.add_argument("--every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    shown = parser.add_argument_group("how to watch it")
    shown.add_argument("--tensorboard", action="store_true", help="write events to the output folder's logs")
    shown.add_argument("--sample-every", type=int, default=0, help="steps between sheets of samples (default: none)")
    shown.add_argument(
        "--sample-prompts", type=path_option, help="text file of prompts, one a line (default: those of some triplets)"
    )
    shown.add_argument(
        "--sample-steps", type=int, default=GenerationSettings().steps, help="of the sampler (default: %(default)s)"
    )
    settings = parser.add_argument_group("settings")
    for field in _SETTINGS:
        kind = {"action": argparse.BooleanOptionalAction} if field.type == "bool" else {"type": type(field.default)}
        name = f"--{field.name.replace('_', '-')}"
        settings.add_argument(name, default=field.default, help="(default: %(default)s)", **kind)
    return parser
