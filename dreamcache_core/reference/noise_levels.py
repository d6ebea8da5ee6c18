"""Features of a reference at several noise levels, kept from one sampling run to the next."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import torch

from ..errors import DreamCacheError

# The features of 64 noise levels of a 512×512 reference are 390 MB in float16.
LIMIT = 64


class NoiseLevels:
    """Features by noise level and by the U-Net's weights. The levels that weren't used for longest make room.

    A level's features: layer name → (references, channels, height, width), the input of that layer's transformer.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._levels: dict[tuple[Hashable, float], Mapping[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def add(self, sigma: float, weights: Hashable, features: Mapping[str, torch.Tensor]) -> None:
        """Keep the features of a noise level, beside those of other layers that it may have."""
        self._levels[weights, sigma] = {**self._levels.pop((weights, sigma), {}), **features}
        while len(self._levels) > self._limit:
            del self._levels[next(iter(self._levels))]

    def nearest(self, sigma: float, weights: Hashable) -> Mapping[str, torch.Tensor]:
        """The features of the level nearest to `sigma`, in logarithms. `weights`: None for any.

        Raises DreamCacheError if there are none.
        """
        levels = [key for key in self._levels if weights in (None, key[0])]
        if not levels:
            raise DreamCacheError(
                "Another node evaluates the model outside of its sampling run, before the reference was encoded for "
                "it: put that node before Apply DreamCache, or choose a trained adapter."
            )
        key = min(levels, key=lambda level: _distance(level[1], sigma))
        # The most recently used level is the last.
        self._levels[key] = features = self._levels.pop(key)
        return features

    def sigmas(self, weights: Hashable) -> list[float]:
        """The cached noise levels of these weights, in the order in which they were used."""
        return [sigma for of, sigma in self._levels if of == weights]

    @property
    def latest(self) -> Mapping[str, torch.Tensor]:
        """The features of the level that was used last."""
        return next(reversed(self._levels.values()))

    def covers(self, sigma: float, weights: Hashable, layers: frozenset[str], within: float) -> bool:
        """Whether a level with these layers is near enough. `within`: the largest distance, in logarithms of sigma."""
        return any(
            of == weights and _distance(level, sigma) <= within and layers <= features.keys()
            for (of, level), features in self._levels.items()
        )


def _distance(one: float, other: float) -> float:
    return abs(math.log(one) - math.log(other))
