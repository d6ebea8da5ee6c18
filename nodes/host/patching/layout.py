"""The layout of an evaluation: which prompt, which latent, and which part of it each row of the batch is.

ComfyUI's rows are prompt by prompt, each with all latents. Other nodes cut latents into tiles and stack these in orders
of their own, or take a few latents of a batch. Few of them say so, but a part of a latent is known by its values.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

_MOST_CANDIDATES = 64
"""Where more places than this have the same first value, latents are too uniform to tell their parts apart."""


class Place(NamedTuple):
    """A part of a latent of the batch, by the latent's number and the part's first row and column."""

    latent: int
    top: int
    left: int


@dataclass(frozen=True)
class Layout:
    """`size`: height and width of the parts. `places`: of each row of the evaluation. `prompts`: the number of each
    row's prompt. Both are empty where they can't be told.
    """

    size: tuple[int, int]
    places: tuple[Place, ...] = ()
    prompts: tuple[int, ...] = ()


def find_layout(parts: torch.Tensor, latents: torch.Tensor, prompts: int) -> Layout:
    """Find where the rows of an evaluation lie in the latents of the step.

    `parts`: (rows, channels, height, width). `latents`: (batch, channels, height, width) with the same values; a part
    may reach over an edge to the other side. `prompts`: how many prompts are evaluated at once; each has every part.
    """
    height, width = parts.shape[-2:]
    unknown = Layout((height, width))
    if height > latents.shape[-2] or width > latents.shape[-1]:
        return unknown
    wrapped = functional.pad(latents, (0, width - 1, 0, height - 1), mode="circular")
    found: list[Place] = []
    numbers: list[int] = []
    seen: Counter[Place] = Counter()
    for part in parts:
        places = _find_part(part, wrapped, latents.shape)
        if len({place[1:] for place in places}) != 1:
            return unknown
        # Latents of equal values take turns.
        place = min(places, key=seen.__getitem__)
        found.append(place)
        # Whatever the order of the parts, those of the same place come in the order of the prompts.
        numbers.append(seen[place])
        seen[place] += 1
    each_once = set(seen.values()) == {prompts}
    return Layout((height, width), tuple(found), tuple(numbers) if each_once else ())


def _find_part(part: torch.Tensor, wrapped: torch.Tensor, shape: torch.Size) -> list[Place]:
    """All places of a part. `shape`: of the latents before they were wrapped."""
    height, width = part.shape[-2:]
    corners = (wrapped[..., : shape[-2], : shape[-1]] == part[:, :1, :1]).all(dim=1).nonzero().tolist()
    if len(corners) > _MOST_CANDIDATES:
        return []
    places = [Place(*corner) for corner in corners]
    return [
        place
        for place in places
        if torch.equal(wrapped[place.latent, :, place.top :, place.left :][:, :height, :width], part)
    ]
