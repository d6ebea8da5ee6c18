"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""What U-Net and adapter may compute in. The weights of the adapter are always float32."""

CACHE_PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
"""What cached latents and prompts may be kept in. float16 takes half the room, and changes the loss by less than
0.1 %.
"""

STARTS = ("random", "own-attention")
"""What the weights of a new adapter may be. With either, it changes nothing at first: see adapter/own_start.py."""


@dataclass(frozen=True)
class TrainingSettings:
    """How an adapter is trained. The defaults of `steps` and `batch` are the paper's (section 4.1).

    `batch`: triplets of each step, in all processes together. `warm_up`: steps over which the learning rate rises.
    `cosine`: whether it then falls to 0. `clip`: largest norm of the gradient. `ema`: decay of the averaged weights, 0
    for no averaging. `min_snr`: γ of min-SNR weighting (arXiv 2303.09556), 0 for none. `timestep_bias`: timestep t is
    sampled with a probability proportional to t^bias: 0 samples all timesteps alike, higher values prefer noisy ones,
    where a reference helps most. `subject_only`: the share of triplets, 0…1, of whose reference the adapter reads the
    subject's tokens alone, as Encode Reference's `subject_only` has it; of triplets with a reference of their own, it
    always reads all.
    """

    steps: int = 200_000
    batch: int = 48
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warm_up: int = 500
    cosine: bool = False
    clip: float = 1.0
    ema: float = 0.9999
    min_snr: float = 0.0
    timestep_bias: float = 0.0
    subject_only: float = 0.0
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step. The first step is 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warm_up))
        done = max(0, step - self.warm_up) / max(1, self.steps - self.warm_up)
        return rate * (1 + math.cos(math.pi * min(1.0, done))) / 2 if self.cosine else rate
