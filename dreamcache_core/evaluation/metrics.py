"""DINO, CLIP-I and CLIP-T: how like its subject, and how true to its prompt, a generated image is.

The metrics of DreamBooth (arXiv 2208.12242, section 4.1) are cosine similarities of embeddings: DINO and CLIP-I compare
a generated image with the subject's references, CLIP-T compares it with its prompt. The masked metrics compare images
and references whose backgrounds have been painted white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from ..errors import DreamCacheError
from ..io.finite import check_finite
from ..reference.image import cut_out

DINO, CLIP_I, CLIP_T = "DINO", "CLIP-I", "CLIP-T"
DINO_MASKED, CLIP_I_MASKED = "DINO masked", "CLIP-I masked"
METRICS = (DINO, CLIP_I, CLIP_T, DINO_MASKED, CLIP_I_MASKED)
_NAN_ADVICE = "start ComfyUI with --force-fp32, or use another file of the network"

# Metric → score, −1…1, of one image or a mean. A metric that wasn't measured has no key.
Scores = dict[str, float]


class ImageEncoder(Protocol):
    """A network that embeds images. `description`: the network and its weights in words."""

    description: str

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Image (height, width, 3), 0…1 → embedding (channels,), float32, on the CPU."""
        ...


class TextEncoder(Protocol):
    """The text encoder of a CLIP. `description`: the network and its weights in words."""

    description: str

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Prompt → embedding (channels,), float32, on the CPU."""
        ...


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that compute the metrics. Without a network, its metrics are not measured.

    `clip_image`, `clip_text`: image and text encoder of the same CLIP.
    """

    dino: ImageEncoder | None = None
    clip_image: ImageEncoder | None = None
    clip_text: TextEncoder | None = None

    @property
    def descriptions(self) -> dict[str, str]:
        """Metric → description of its network. A masked metric has the network of the unmasked one."""
        networks = {DINO: self.dino, CLIP_I: self.clip_image, CLIP_T: self.clip_text}
        return {metric: network.description for metric, network in networks.items() if network}


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """An image to compare. `image`: (height, width, 3), 0…1. `mask`: (height, width), 1 on the subject, if known."""

    image: torch.Tensor
    mask: torch.Tensor | None = None


class SubjectMetrics:
    """The metrics of one subject, with the embeddings of its references.

    References without a mask are left out of the masked metrics. Raises DreamCacheError if there is no reference.
    """

    def __init__(self, networks: MetricNetworks, references: Sequence[MaskedImage]) -> None:
        if not references:
            raise DreamCacheError("There is no reference to compare with: connect at least one image of the subject.")
        self._networks = networks
        embedded = [self._embed(reference) for reference in references]
        # The mean of the cosines with all references is the product with the mean of their unit vectors.
        self._references = {
            metric: torch.stack([embeddings[metric] for embeddings in embedded if metric in embeddings]).mean(dim=0)
            for metric in METRICS
            if any(metric in embeddings for embeddings in embedded)
        }

    @torch.no_grad()
    def measure(self, image: MaskedImage, prompt: str = "") -> Scores:
        """The scores of a generated image: CLIP-T if there is a prompt, the masked ones if the image has a mask."""
        embeddings = self._embed(image)
        targets = dict(self._references)
        if CLIP_I in embeddings and self._networks.clip_text and prompt:
            embeddings[CLIP_T] = embeddings[CLIP_I]
            embedding = self._networks.clip_text.encode_prompt(prompt)
            targets[CLIP_T] = _unit(embedding, "a prompt", self._networks.clip_text)
        return {
            metric: float(embeddings[metric] @ targets[metric])
            for metric in METRICS
            if metric in embeddings and metric in targets
        }

    @torch.no_grad()
    def _embed(self, image: MaskedImage) -> dict[str, torch.Tensor]:
        """Metric → embedding of the image, a vector of length 1."""
        networks, inputs = self._networks, {DINO: image.image, CLIP_I: image.image}
        if image.mask is not None:
            inputs[DINO_MASKED] = inputs[CLIP_I_MASKED] = cut_out(image.image, image.mask)
        embeddings = {}
        for metric, pixels in inputs.items():
            network = networks.dino if metric in (DINO, DINO_MASKED) else networks.clip_image
            if network:
                embeddings[metric] = _unit(network.encode_image(pixels), "an image", network)
        return embeddings


def _unit(embedding: torch.Tensor, what: str, network: ImageEncoder | TextEncoder) -> torch.Tensor:
    """The embedding with length 1. Raises DreamCacheError if it contains NaN. `what`: is embedded, in words."""
    check_finite(embedding, f"The embedding of {what} by {network.description}", _NAN_ADVICE)
    return functional.normalize(embedding, dim=0)


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean of each metric, over the scores that have it."""
    return {
        metric: sum(measured) / len(measured)
        for metric in METRICS
        if (measured := [one[metric] for one in scores if metric in one])
    }


def describe_scores(scores: Scores) -> str:
    """Scores in words: `DINO 0.712, CLIP-I 0.834`."""
    return ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items())
