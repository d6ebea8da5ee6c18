"""Recipes: options of the training command by what they are for. A config file or the command line overrides each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """`purpose`: in words. `options`: name → value, as in a config file."""

    purpose: str
    options: Mapping[str, int | float | bool | str]

    @property
    def description(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.purpose}: {chosen}"


RECIPES = {
    "smoke": Recipe(
        "whether everything works, in minutes on a GPU",
        {
            "steps": 20,
            "batch": 2,
            "resolution": 256,
            "learning_rate": 1e-4,
            "warm_up": 5,
            "every": 10,
            "held_out": 4,
            "cache_precision": "float16",
        },
    ),
    "evening": Recipe(
        "250,000 samples, for one GPU and one night",
        {
            "steps": 15_625,
            "batch": 16,
            "parts": 4,
            "resolution": 512,
            "learning_rate": 1e-4,
            "warm_up": 200,
            "cosine": True,
            "ema": 0.999,
            "every": 500,
            "held_out": 64,
            "cache_precision": "float16",
            "start": "own-attention",
        },
    ),
    "paper": Recipe(
        "the paper's 9.6 million samples (section 4.1)",
        {
            "steps": 200_000,
            "batch": 48,
            "parts": 6,
            "resolution": 512,
            "learning_rate": 1e-4,
            "warm_up": 500,
            "ema": 0.9999,
            "every": 1000,
            "held_out": 64,
            "cache_precision": "float16",
        },
    ),
}
