"""The options of the training command."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import torch

from ..errors import DreamCacheError
from ..generation import GenerationSettings
from ..io.json_fields import MalformedError, parse_json
from ..io.names import path_option
from ..io.text import read_text
from ..unet import PIXELS_PER_LATENT
from .recipes import RECIPES
from .settings import CACHE_PRECISIONS, PRECISIONS, STARTS, TrainingSettings

_SETTINGS = dataclasses.fields(TrainingSettings)
_STARTS = "random, or fitted to the model's own attention (default: %(default)s)"
_AT_LEAST = {"steps": 1, "batch": 1, "resolution": 64, "parts": 1, "every": 1, "sample_steps": 1}
"""Of options that can't be 0."""
_AT_MOST = {"subject_only": 1}
"""Of options with a limit."""
_HELP = {"subject_only": "share of triplets trained on the tokens of the subject alone; its effect is unmeasured "}


def read_options() -> argparse.Namespace:
    """The command's options: those of the command line, over those of its `--config`, over those of its `--recipe`.

    Ends the process with a sentence if one is wrong. `cpu` is also true where there is no GPU.
    """
    parser = _parser()
    options = parser.parse_args()
    config = _read_config(parser, options) if options.config else {}
    recipe = options.recipe or config.get("recipe")
    if recipe in RECIPES:
        parser.set_defaults(**RECIPES[recipe].options)
    parser.set_defaults(**config)
    options = parser.parse_args()
    _check(parser, options)
    options.cpu = options.cpu or not torch.cuda.is_available()
    return options


def _read_config(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    path = options.config
    try:
        config = parse_json(read_text(path))
        if not isinstance(config, dict):
            raise MalformedError("it is no JSON object")
    except DreamCacheError as error:
        parser.error(str(error))
    except MalformedError as error:
        parser.error(f"{path} can't be read as a JSON object of settings: {error}")
    unknown = config.keys() - vars(options).keys()
    if unknown:
        parser.error(f"{path} has settings that don't exist: {', '.join(sorted(unknown))}")
    return config


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process if an option has a value that training can't use: argparse leaves those of a config unchecked."""
    for action in parser._actions:
        name, value = action.dest, getattr(options, action.dest, None)
        if value is None:
            continue
        if action.choices and value not in action.choices:
            parser.error(f"{name} is {value!r}: choose one of {', '.join(action.choices)}")
        least, most = _AT_LEAST.get(name, 0), _AT_MOST.get(name, sys.float_info.max)
        if action.type in (int, float) and (
            isinstance(value, bool) or not isinstance(value, action.type | int) or not least <= value <= most
        ):
            kind = "a whole number" if action.type is int else "a number"
            limits = f"{least} to {most}" if name in _AT_MOST else f"at least {least}"
            parser.error(f"{name} is {value!r}: give {kind} of {limits}")
        if action.nargs == 0 and not isinstance(value, bool):
            parser.error(f"{name} is {value!r}: give true or false")
    if options.resolution % PIXELS_PER_LATENT:
        nearest = options.resolution // PIXELS_PER_LATENT * PIXELS_PER_LATENT
        parser.error(f"the resolution {options.resolution} is not a multiple of {PIXELS_PER_LATENT}: use {nearest}")
    if not options.checkpoint.is_file():
        parser.error(f"{options.checkpoint} is not there: give the file of a base model")


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
    purposes = "; ".join(f"{name}: {recipe.purpose}" for name, recipe in RECIPES.items())
    parser.add_argument("--recipe", choices=RECIPES, help=f"named options, which the others override. {purposes}")
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
    parser.add_argument(
        "--cache-precision", choices=CACHE_PRECISIONS, default="float32", help="of that folder (default: %(default)s)"
    )
    parser.add_argument("--start", choices=STARTS, default=STARTS[0], help=f"weights of a new adapter: {_STARTS}")
    parser.add_argument("--every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    shown = parser.add_argument_group("how to watch it")
    shown.add_argument("--tensorboard", action="store_true", help="write events to the output folder's logs")
    shown.add_argument(
        "--held-out", type=int, default=0, help="triplets that aren't trained on, for validations (default: none)"
    )
    shown.add_argument(
        "--patience", type=int, default=0, help="validations without growth of the gap that end it (default: no end)"
    )
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
        text = f"{_HELP.get(field.name, '')}(default: %(default)s)"
        settings.add_argument(name, default=field.default, help=text, **kind)
    return parser
