"""The options of the evaluation command."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..generation import GenerationSettings
from ..io.names import path_option

DEFAULTS = GenerationSettings(steps=30, cfg=7.5)
_SETTINGS = ("steps", "cfg", "resolution", "sampler", "scheduler", "negative", "strength", "image_guidance")
"""The settings that can be chosen. The others are as DEFAULTS has them, and the seed counts the images of a prompt."""


def read_options() -> argparse.Namespace:
    """The command's options. Ends the process if one is wrong. `cpu` is also true where there is no GPU."""
    options = _parser().parse_args()
    options.cpu = options.cpu or not torch.cuda.is_available()
    return options


def generation_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of GenerationSettings that the options set."""
    return {name: getattr(options, name) for name in _SETTINGS}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dreamcache_core.evaluate",
        description="Evaluate an adapter from the command line, on a folder of subjects such as DreamBooth's dataset.",
    )
    steps = parser.add_subparsers(dest="step", required=True)
    drawing = steps.add_parser("draw", help="draw each subject with each of its prompts; resumes where it stopped")
    measuring = steps.add_parser("measure", help="measure pictures drawn here or elsewhere")
    for step in (drawing, measuring):
        step.add_argument("--comfyui", type=path_option, required=True, help="ComfyUI's folder")
        step.add_argument(
            "--subjects",
            type=path_option,
            required=True,
            help="folder of subjects, as web/docs/evaluation.md describes it",
        )
        step.add_argument("--pictures", type=path_option, required=True, help="folder of the drawn pictures")
        step.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    drawing.add_argument("--checkpoint", type=path_option, required=True, help="file of the base model")
    drawing.add_argument("--adapter", type=path_option, required=True, help="file of the adapter")
    drawing.add_argument("--seeds", type=int, default=4, help="pictures of each prompt (default: %(default)s)")
    settings = drawing.add_argument_group("settings, as in the nodes")
    for name in _SETTINGS:
        default = getattr(DEFAULTS, name)
        option = f"--{name.replace('_', '-')}"
        settings.add_argument(option, type=type(default), default=default, help="(default: %(default)s)")
    networks = measuring.add_argument_group("networks: files, by path or by name in ComfyUI's models folders")
    networks.add_argument("--clip", help="of clip_vision: CLIP, for CLIP-I, and for CLIP-T if it holds a text encoder")
    networks.add_argument("--clip-text", help="of text_encoders: the same CLIP's text encoder, with its projection")
    networks.add_argument("--dino", help="of clip_vision: DINO's ViT-S/16, or another DINO")
    networks.add_argument("--background-removal", help="makes masks for pictures that have none, for masked scores")
    measuring.add_argument("--output", type=path_option, help="folder for the results (default: that of the pictures)")
    return parser
