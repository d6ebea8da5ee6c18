"""How faithful drawn pictures are to their subject and to their prompt: DINO, CLIP-I and CLIP-T.

As DreamBooth measures them (arXiv 2208.12242, section 4.1), and those who came after it: cosines between a network's
vectors of a drawn picture and of the subject's references, and between CLIP's of the picture and of its prompt. Masked
scores are those of pictures, drawn ones and references, whose backgrounds were painted white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from ..errors import DreamCacheError
from ..reference.image import cut_out

DINO, CLIP_I, CLIP_T = "DINO", "CLIP-I", "CLIP-T"
DINO_MASKED, CLIP_I_MASKED = "DINO masked", "CLIP-I masked"
METRICS = (DINO, CLIP_I, CLIP_T, DINO_MASKED, CLIP_I_MASKED)

# Metric → −1…1, of one picture or on average. What wasn't measured isn't in it.
Scores = dict[str, float]


class ImageEncoder(Protocol):
    """A network that turns pictures into vectors. `description`: which network, with which weights."""

    description: str

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(height, width, 3), 0…1 → (channels,), float32, on the CPU."""
        ...


class PromptEncoder(Protocol):
    """The half of CLIP that turns prompts into vectors. `description`: which network, with which weights."""

    description: str

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """(channels,), float32, on the CPU."""
        ...


@dataclass(frozen=True)
class Yardsticks:
    """The networks to measure with, any of which may be missing. `clip` and `prompts`: halves of the same CLIP."""

    dino: ImageEncoder | None = None
    clip: ImageEncoder | None = None
    prompts: PromptEncoder | None = None

    @property
    def descriptions(self) -> dict[str, str]:
        """Metric → what it was measured with."""
        networks = {DINO: self.dino, CLIP_I: self.clip, CLIP_T: self.prompts}
        return {metric: network.description for metric, network in networks.items() if network}


@dataclass(frozen=True, eq=False)
class Picture:
    """`image`: (height, width, 3), 0…1. `mask`: (height, width), 1 on the subject, or None if that isn't known."""

    image: torch.Tensor
    mask: torch.Tensor | None = None


class SubjectMeasure:
    """Measures drawn pictures of one subject against its references, of which masked scores leave out those that have
    no mask. Raises DreamCacheError if there is no reference.
    """

    def __init__(self, yardsticks: Yardsticks, references: Sequence[Picture]) -> None:
        if not references:
            raise DreamCacheError("There is no reference to compare with: connect at least one image of the subject.")
        self._yardsticks = yardsticks
        encoded = [self._encode(reference) for reference in references]
        # The mean of cosines is the product with the mean.
        self._subject = {
            metric: torch.stack([vectors[metric] for vectors in encoded if metric in vectors]).mean(dim=0)
            for metric in METRICS
            if any(metric in vectors for vectors in encoded)
        }

    @torch.no_grad()
    def measure(self, picture: Picture, prompt: str = "") -> Scores:
        """Scores of a drawn picture: CLIP-T if it has a prompt, masked ones if it has a mask."""
        vectors = self._encode(picture)
        others = dict(self._subject)
        if CLIP_I in vectors and self._yardsticks.prompts and prompt:
            vectors[CLIP_T] = vectors[CLIP_I]
            others[CLIP_T] = functional.normalize(self._yardsticks.prompts.encode_prompt(prompt), dim=0)
        return {
            metric: float(vectors[metric] @ others[metric])
            for metric in METRICS
            if metric in vectors and metric in others
        }

    @torch.no_grad()
    def _encode(self, picture: Picture) -> dict[str, torch.Tensor]:
        """What metrics compare of a picture: vectors of length 1."""
        networks, images = self._yardsticks, {DINO: picture.image, CLIP_I: picture.image}
        if picture.mask is not None:
            images[DINO_MASKED] = images[CLIP_I_MASKED] = cut_out(picture.image, picture.mask)
        vectors = {}
        for metric, image in images.items():
            network = networks.dino if metric in (DINO, DINO_MASKED) else networks.clip
            if network:
                vectors[metric] = functional.normalize(network.encode_image(image), dim=0)
        return vectors


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean of each metric over those that have it."""
    return {
        metric: sum(measured) / len(measured)
        for metric in METRICS
        if (measured := [one[metric] for one in scores if metric in one])
    }
