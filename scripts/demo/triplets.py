"""Triplets of the demo world, in the form that the project's own trainer reads."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dreamcache_core import save_sample

from .artwork import DEMO, trained_subjects
from .world import random_scene

FOLDER = DEMO / "triplets"
COUNT = 20_000


def write_triplets(count: int) -> None:
    """Write so many scenes that aren't held out, going on after those that are there."""
    drawn = trained_subjects()
    written = sum(1 for _ in FOLDER.glob("**/*_generation.png"))
    for number in range(written, count):
        random = np.random.default_rng([4, number])
        scene = random_scene(drawn, random)
        pictures = {"generation": Image.fromarray(scene.image), "mask": Image.fromarray(scene.mask)}
        save_sample(FOLDER, pictures, scene.caption)
    print(f"{max(count, written)} triplets are in {FOLDER}.")
