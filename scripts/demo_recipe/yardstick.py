"""What measures the demo model: a network that knows subjects and backgrounds, trained on none of the held-out ones."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .artwork import DEMO
from .loop import DEVICE, initialize, on_device, train
from .scenes import read_scenes
from .world import BACKGROUNDS

STEPS = 1_500
BATCH = 48
_CHANNELS = (32, 64, 128, 192)
_EMBEDDING = 128
_TEMPERATURE = 0.07


class Yardstick(nn.Module):
    """Of pictures (batch, 3, 64, 64), 0…1: what their subjects look like, as unit vectors (batch, 128) whose products
    are likenesses, and how likely each background is, as logits (batch, backgrounds).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, _CHANNELS[0], 4, stride=2, padding=1)]
        for before, after in itertools.pairwise(_CHANNELS):
            layers += [_Residual(before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        self.trunk = nn.Sequential(*layers, _Residual(_CHANNELS[-1]), nn.GroupNorm(8, _CHANNELS[-1]), nn.SiLU())
        self.to_subject = nn.Linear(_CHANNELS[-1] * 16, _EMBEDDING)
        self.to_background = nn.Linear(_CHANNELS[-1] * 16, len(BACKGROUNDS))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.trunk(pictures * 2 - 1).flatten(1)
        return F.normalize(self.to_subject(seen), dim=1), self.to_background(seen)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def train_yardstick(steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Train it to find the reference of each scene among those of a batch, and to name its background.

    Returns its weights.
    """
    yardstick = Yardstick()
    initialize(yardstick)
    scenes = read_scenes(pictures=True)
    pictures_of_scenes, pictures_of_references = scenes.pictures, scenes.reference_pictures
    assert pictures_of_scenes is not None and pictures_of_references is not None
    names = list(BACKGROUNDS)
    backgrounds = torch.tensor([names.index(background) for background in scenes.backgrounds], device=DEVICE)
    subjects = np.unique(scenes.subjects, return_inverse=True)[1]

    def loss_of_step(step: int) -> torch.Tensor:
        random = np.random.default_rng([6, step])
        drawn = random.choice(len(scenes), 4 * BATCH, replace=False)
        # Each subject once, for its other scenes are no wrong answers.
        chosen = on_device(drawn[np.sort(np.unique(subjects[drawn], return_index=True)[1])][:BATCH])
        with torch.autocast(DEVICE.type, torch.bfloat16):
            pictures = torch.cat([pictures_of_scenes[chosen], pictures_of_references[chosen]]).float() / 255
            embeddings, logits = yardstick(pictures)
        of_scenes, of_references = embeddings.float().chunk(2)
        likeness = of_scenes @ of_references.T / _TEMPERATURE
        right = torch.arange(len(chosen), device=DEVICE)
        finding = (F.cross_entropy(likeness, right) + F.cross_entropy(likeness.T, right)) / 2
        named = logits[: len(chosen)].float()
        return finding + F.cross_entropy(named, backgrounds[chosen])

    trained = train(yardstick, loss_of_step, DEMO / "yardstick", steps=steps, learning_rate=1e-3, ema=0.99)
    return trained.state_dict()
