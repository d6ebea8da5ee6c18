"""DreamCache Prompt Source: another prompt at each run, of word lists or of a text file."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.io.file_state import fingerprint
from ..dreamcache_core.io.names import TEXT_TYPES
from ..dreamcache_core.io.text import read_text
from ..dreamcache_core.training.prompts import choose_line, combine_words
from .schema import TRAINING_CATEGORY

WORD_LISTS = "word lists"

TEMPLATE = "a photo of {subject} {context}, {style}"
SUBJECTS = """a dog
a cat
a backpack
a sneaker
a boot
a teapot
a coffee mug
a vase
a candle
a lantern
an alarm clock
a wristwatch
a camera
a guitar
a toy robot
a toy car
a plush bear
a rubber duck
a porcelain figurine
a bicycle
a motorcycle
an armchair
a desk lamp
a potted plant
a suitcase
an umbrella
a hat
a pair of sunglasses
a birthday cake
a parrot
a rabbit
a turtle"""
CONTEXTS = """on a sandy beach, the sea in the background
in a snowy forest
on a wooden table in a kitchen
in a meadow of wild flowers
on a city street at night
in front of a brick wall
on a rocky mountain top
on a picnic blanket in a park
beside a swimming pool
in a cosy living room
on a bookshelf
on a marble pedestal in a museum
in the desert at sunset
on a boat on a lake
on a market stall
in a greenhouse full of plants
on cobblestones in the rain
in an empty white studio
on a rooftop above a city
in a field of autumn leaves
on a train seat by the window
under a cherry tree in blossom
on a workbench full of tools
in a bamboo forest"""
STYLES = """natural light, sharp focus
soft morning light
golden hour
overcast sky, muted colours
studio lighting
shallow depth of field
wide-angle shot
close-up, detailed
seen from above
35mm film, fine grain"""


class DreamCachePromptSource(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCachePromptSource",
            display_name="DreamCache Prompt Source",
            category=TRAINING_CATEGORY,
            description="Gives a different prompt in each run, to generate training images from.",
            search_aliases=["wildcards", "prompt list", "prompts from file", "dataset", "random prompt"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[WORD_LISTS, *_text_files()],
                    tooltip="The word lists below, or a text file in ComfyUI's input folder with one prompt per line. "
                    "Any language model can write one.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=io.ControlAfterGenerate.increment,
                    tooltip="Which prompt to give. Counting up gives every prompt once before any repeats.",
                ),
                io.String.Input(
                    "template",
                    default=TEMPLATE,
                    tooltip="The sentence to fill in. Words from the lists replace {subject}, {context} and {style}.",
                ),
                _words("subjects", SUBJECTS, "What the images show, with its article."),
                _words("contexts", CONTEXTS, "Where the subject is."),
                _words("styles", STYLES, "Light, camera and style."),
            ],
            outputs=[
                io.String.Output("prompt", tooltip="For CLIP Text Encode, and for DreamCache Save Triplet."),
                io.String.Output(
                    "subject", tooltip="The subject of the prompt, for nodes that locate it in the image."
                ),
                io.Int.Output("number", tooltip="Number of this prompt, starting at 1."),
                io.Int.Output("total", tooltip="Total number of prompts."),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, source: str | None) -> bool | str:
        # None: the name comes from another node, and is looked up when that has run.
        if source in (None, WORD_LISTS, *_text_files()):
            return True
        folder = folder_paths.get_input_directory()
        return f"There is no text file {source} in {folder}: put it there, then press R to refresh the list."

    @classmethod
    @override
    def fingerprint_inputs(cls, source: str | None, **_: object) -> str:
        return fingerprint(_path(source)) if source in _text_files() else ""

    @classmethod
    @override
    def execute(cls, source: str, seed: int, template: str, subjects: str, contexts: str, styles: str) -> io.NodeOutput:
        if source == WORD_LISTS:
            chosen = combine_words(seed, template, subjects, contexts, styles)
        else:
            chosen = choose_line(seed, _read(source))
        return io.NodeOutput(chosen.prompt, chosen.subject, chosen.number, chosen.total)


def _words(name: str, default: str, what: str) -> io.String.Input:
    tooltip = f"{what} One entry per line."
    return io.String.Input(name, default=default, multiline=True, placeholder=name, tooltip=tooltip)


def _text_files() -> list[str]:
    # Not iterdir: the schema of all nodes must not fail where the folder is missing or can't be read.
    _, _, names = next(os.walk(folder_paths.get_input_directory()), ("", [], []))
    return sorted(name for name in names if name.lower().endswith(TEXT_TYPES))


def _path(source: str) -> Path:
    return Path(folder_paths.get_input_directory(), source)


def _read(source: str) -> str:
    if source not in _text_files():
        raise DreamCacheError(f"There is no text file {source} in ComfyUI's input folder: put it there.")
    return read_text(_path(source))
