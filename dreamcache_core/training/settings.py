"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """How an adapter is trained; `steps` and `batch` are the paper's by default (section 4.1).

    `warm_up`: steps of rising learning rate. `cosine`: whether the rate then falls to 0. `clip`: largest norm of the
    gradients. `ema`: decay of the averaged weights, 0 for none. `min_snr`: γ of min-SNR weighting (arXiv 2303.09556),
    0 for none. `timestep_bias`: of timestep t, how often it is drawn is proportional to its power t^bias: 0 draws all
    alike, and more the noisy ones more often, which are where a reference tells most.
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
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warm_up))
        done = max(0, step - self.warm_up) / max(1, self.steps - self.warm_up)
        return rate * (1 + math.cos(math.pi * min(1.0, done))) / 2 if self.cosine else rate
