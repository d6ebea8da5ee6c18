"""The sample sheet: what a training draws, beside the references."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from PIL import Image

from .tile_sheet import Section, Tile, TileSheet

LONGEST_PROMPT = 60
"""How many characters of a prompt are shown, at most."""


def sample_tiles(
    prompts: Sequence[str], references: Iterable[Image.Image], images: Iterable[Image.Image], label: str
) -> TileSheet:
    """Each reference, under its prompt, beside the image that was drawn of it. `label`: of these images."""
    tiles = []
    for prompt, reference, image in zip(prompts, references, images, strict=True):
        shortened = textwrap.shorten(prompt, LONGEST_PROMPT, placeholder=" …")
        tiles += [Tile(shortened, reference), Tile(label, image)]
    pairs_in_a_row = math.ceil(math.sqrt(len(prompts)))
    return TileSheet("", [Section("", tiles)], 2 * pairs_in_a_row)
