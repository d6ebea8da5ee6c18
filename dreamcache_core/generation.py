"""How an image is generated: the settings of sampling and of the reference, each with its default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationSettings:
    """The inputs of KSampler, Empty Latent Image and Apply DreamCache.

    `seed`: of each image, so that it doesn't depend on the others. `resolution`: side of images and references, in
    pixels. `negative`: the negative prompt.
    """

    seed: int = 0
    steps: int = 20
    cfg: float = 7.0
    resolution: int = 512
    negative: str = ""
    sampler: str = "euler"
    scheduler: str = "normal"
    strength: float = 1.0
    image_guidance: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    denoise: float = 1.0
