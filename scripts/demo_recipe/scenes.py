"""Scenes as everything but the autoencoder is trained on them: written once, for that takes longer than a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_image, to_tensor
from dreamcache.dreamcache_core.reference.image import subject_on_white
from dreamcache.dreamcache_core.training.augmentation import augment_reference
from safetensors import safe_open
from safetensors.torch import save_file

from .artwork import DEMO, Subject, trained_subjects
from .loop import DEVICE, as_tensor
from .world import SIZE, Scene, random_scene

FOLDER = DEMO / "scenes"
SHARD = 2048
COUNT = 8 * SHARD
SEEN = 64
"""Side of the pictures that the yardstick sees, in pixels."""
_AUGMENTED = 1 / 3
"""How many references are as the training recipe makes them of any data."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """All that are written, none of which is held out, each with a reference of its subject.

    `latents`, `references`: as the U-Net reads them, (scenes, 4, 16, 16) float16. `pictures`, `reference_pictures`: the
    same as the yardstick sees them, (scenes, 3, 64, 64) uint8. All are on DEVICE.
    `subjects`: keys of Subject. `backgrounds`: keys of BACKGROUNDS.
    """

    latents: torch.Tensor
    references: torch.Tensor
    pictures: torch.Tensor
    reference_pictures: torch.Tensor
    captions: Sequence[str]
    subjects: Sequence[str]
    backgrounds: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)


_TENSORS = ("latents", "references", "pictures", "reference_pictures")
_WORDS = ("captions", "subjects", "backgrounds")


def write_scenes(networks: Any, count: int) -> None:
    """Encode so many scenes that aren't held out, in files of 2048, which are left alone where they exist."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in range(count // SHARD) if not _path(shard).exists()]
    with ProcessPoolExecutor(2) as pool:
        for shard, drawn in zip(missing, pool.map(_draw_shard, missing), strict=True):
            scenes = encode_scenes(networks, drawn)
            tensors = {name: getattr(scenes, name).cpu().contiguous() for name in _TENSORS}
            partial = _path(shard).with_suffix(".partial")
            save_file(tensors, partial, {"words": json.dumps({name: getattr(scenes, name) for name in _WORDS})})
            partial.replace(_path(shard))
            latents = scenes.latents.float()
            print(f"shard {shard}: latents' mean {latents.mean():.3f}, deviation {latents.std():.3f}", flush=True)


def draw_scenes(drawn: list[Subject], seed: Sequence[int], count: int) -> tuple[list[Scene], list[np.ndarray]]:
    """Scenes of these subjects, and a reference of each, (128, 128, 3) uint8."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(drawn, random) for _ in range(count)]
    return scenes, [_reference_for(scene, Random(f"{seed}/{place}")) for place, scene in enumerate(scenes)]


def _reference_for(scene: Scene, random: Random) -> np.ndarray:
    """Mostly what Encode Reference makes of a picture in which the subject looks the same way."""
    if random.random() < _AUGMENTED:
        return augmented_reference(scene.subject, random)
    return reference(scene.subject, scene.mirrored)


@torch.no_grad()
def encode_scenes(networks: Any, drawn: tuple[list[Scene], list[np.ndarray]]) -> Scenes:
    """What `draw_scenes` gave, as it is trained on."""
    scenes, references = drawn[0], np.stack(drawn[1])
    images = np.stack([scene.image for scene in scenes])
    return Scenes(
        latents=_encode(networks, images),
        references=_encode(networks, references),
        pictures=seen(images),
        reference_pictures=seen(references),
        captions=[scene.caption for scene in scenes],
        subjects=[scene.subject.key for scene in scenes],
        backgrounds=[scene.background for scene in scenes],
    )


def read_scenes() -> Scenes:
    """Raises DreamCacheError if there are none."""
    paths = sorted(FOLDER.glob("*.safetensors"))
    if not paths:
        raise DreamCacheError(f"There are no scenes in {FOLDER}: run the step `scenes` first.")
    tensors: dict[str, list[torch.Tensor]] = {name: [] for name in _TENSORS}
    words: dict[str, list[str]] = {name: [] for name in _WORDS}
    for path in paths:
        with safe_open(path, "pt", DEVICE.type) as file:
            for name in _TENSORS:
                tensors[name].append(file.get_tensor(name))
            for name, those in json.loads(file.metadata()["words"]).items():
                words[name] += those
    fields: dict[str, Any] = {**{name: torch.cat(parts) for name, parts in tensors.items()}, **words}
    return Scenes(**fields)


def seen(images: np.ndarray) -> torch.Tensor:
    """Pictures (pictures, 128, 128, 3) uint8 as the yardstick sees them, (pictures, 3, 64, 64) uint8, on DEVICE."""
    return (F.avg_pool2d(as_tensor(images), SIZE // SEEN) * 255).round().byte()


def reference(subject: Subject, mirrored: bool = False) -> np.ndarray:
    """A subject as Encode Reference cuts it out, (128, 128, 3) uint8."""
    picture = to_tensor(subject.picture()).flip(1) if mirrored else to_tensor(subject.picture())
    return np.asarray(to_image(subject_on_white(picture[None, ..., :3], picture[None, ..., 3], SIZE)[0]))


def augmented_reference(subject: Subject, random: Random) -> np.ndarray:
    """A reference of a subject as the training recipe makes them, (128, 128, 3) uint8."""
    picture = to_tensor(subject.picture())
    return np.asarray(to_image(augment_reference(picture[..., :3], picture[..., 3], SIZE, random)))


def _path(shard: int) -> Path:
    return FOLDER / f"{shard:04d}.safetensors"


def _draw_shard(shard: int) -> tuple[list[Scene], list[np.ndarray]]:
    torch.set_num_threads(1)
    return draw_scenes(trained_subjects(), [2, shard], SHARD)


def _encode(networks: Any, images: np.ndarray) -> torch.Tensor:
    """(pictures, 128, 128, 3) uint8 → latents as the U-Net reads them, (pictures, 4, 16, 16) float16."""
    parts = np.split(images, len(images) // 64)
    latents = [networks.vae.encode(as_tensor(part).movedim(1, -1)) for part in parts]
    return networks.model.model.process_latent_in(torch.cat(latents)).half()
