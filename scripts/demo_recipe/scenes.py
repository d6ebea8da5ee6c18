"""Scenes as everything but the autoencoder is trained on them: written once, for that takes longer than a step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_image, to_tensor
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.image import subject_on_white
from dreamcache.dreamcache_core.reference.masks import resize_mask
from dreamcache.dreamcache_core.training.augmentation import augment_reference
from safetensors import safe_open
from safetensors.torch import save_file

from .artwork import DEMO, Subject, trained_subjects
from .loop import DEVICE, as_tensor, on_device
from .world import SIZE, Scene, random_scene

FOLDER = DEMO / "scenes"
SHARD = 2048
COUNT = 32 * SHARD
SEEN = 64
"""Side of the pictures that the yardstick sees, in pixels."""
AUGMENTED = 1 / 3
"""How many references are as the training recipe makes them of any data."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """All that are written, none of which is held out, each with a reference of its subject.

    `latents`, `references`: as the U-Net reads them, (scenes, 4, 16, 16) float16. `masks`: how much of each latent
    pixel of a reference is its subject, (scenes, 16, 16) float16, 0…1. `pictures`, `reference_pictures`: as the
    yardstick sees them, (scenes, 3, 64, 64) uint8; None where nobody needs them. All are on DEVICE.
    `subjects`: keys of Subject. `backgrounds`: keys of BACKGROUNDS.
    """

    latents: torch.Tensor
    references: torch.Tensor
    masks: torch.Tensor
    pictures: torch.Tensor | None
    reference_pictures: torch.Tensor | None
    captions: Sequence[str]
    subjects: Sequence[str]
    backgrounds: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)


_TENSORS = ("latents", "references", "masks")
_PICTURES = ("pictures", "reference_pictures")
_WORDS = ("captions", "subjects", "backgrounds")


def write_scenes(networks: Any, count: int) -> None:
    """Encode so many scenes that aren't held out, in files of 2048, which are left alone where they exist."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in range(count // SHARD) if not _path(shard).exists()]
    with ProcessPoolExecutor(1) as pool:
        # One is drawn while the last is encoded, and no more, for their pictures take memory.
        ahead = [pool.submit(_draw_shard, shard) for shard in missing[:1]]
        for shard, after in itertools.zip_longest(missing, missing[1:]):
            drawn = ahead.pop().result()
            if after is not None:
                ahead.append(pool.submit(_draw_shard, after))
            scenes = encode_scenes(networks, drawn)
            tensors = {name: getattr(scenes, name).cpu().contiguous() for name in (*_TENSORS, *_PICTURES)}
            partial = _path(shard).with_suffix(".partial")
            save_file(tensors, partial, {"words": json.dumps({name: getattr(scenes, name) for name in _WORDS})})
            partial.replace(_path(shard))
            latents = scenes.latents.float()
            print(f"shard {shard}: latents' mean {latents.mean():.3f}, deviation {latents.std():.3f}", flush=True)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Scenes and a reference of each. `references`: (scenes, 128, 128, 3) uint8. `masks`: of the subjects in them,
    (scenes, 128, 128) uint8, 255 where the subject is.
    """

    scenes: list[Scene]
    references: np.ndarray
    masks: np.ndarray


def draw_scenes(drawn: list[Subject], seed: Sequence[int], count: int) -> Drawn:
    """Scenes of these subjects, with references."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(drawn, random) for _ in range(count)]
    references, black = (
        np.stack([_reference_for(scene, Random(f"{seed}/{place}"), black) for place, scene in enumerate(scenes)])
        for black in (False, True)
    )
    return Drawn(scenes, references, 255 - black[..., 0])


def _reference_for(scene: Scene, random: Random, black: bool) -> np.ndarray:
    """Mostly what Encode Reference makes of a picture in which the subject looks the same way."""
    if random.random() < AUGMENTED:
        return augmented_reference(scene.subject, random, black)
    return reference(scene.subject, scene.mirrored, black)


@torch.no_grad()
def encode_scenes(networks: Any, drawn: Drawn) -> Scenes:
    """What `draw_scenes` gave, as it is trained on."""
    scenes = drawn.scenes
    images = np.stack([scene.image for scene in scenes])
    latents = _encode(networks, images)
    return Scenes(
        latents=latents,
        references=_encode(networks, drawn.references),
        masks=in_latent_pixels(on_device(drawn.masks) / 255).half(),
        pictures=seen(images),
        reference_pictures=seen(drawn.references),
        captions=[scene.caption for scene in scenes],
        subjects=[scene.subject.key for scene in scenes],
        backgrounds=[scene.background for scene in scenes],
    )


def read_scenes(pictures: bool = False) -> Scenes:
    """With their pictures, which take twelve times the memory, or without. Raises DreamCacheError if there are none."""
    paths = sorted(FOLDER.glob("*.safetensors"))
    if not paths:
        raise DreamCacheError(f"There are no scenes in {FOLDER}: run the step `scenes` first.")
    tensors: dict[str, list[torch.Tensor]] = {name: [] for name in (*_TENSORS, *(_PICTURES if pictures else ()))}
    words: dict[str, list[str]] = {name: [] for name in _WORDS}
    for path in paths:
        with safe_open(path, "pt", DEVICE.type) as file:
            for name, parts in tensors.items():
                parts.append(file.get_tensor(name))
            for name, those in json.loads(file.metadata()["words"]).items():
                words[name] += those
    fields: dict[str, Any] = {name: torch.cat(parts) for name, parts in tensors.items()}
    return Scenes(**{**dict.fromkeys(_PICTURES), **fields, **words})


def seen(images: np.ndarray) -> torch.Tensor:
    """Pictures (pictures, 128, 128, 3) uint8 as the yardstick sees them, (pictures, 3, 64, 64) uint8, on DEVICE."""
    return (F.avg_pool2d(as_tensor(images), SIZE // SEEN) * 255).round().byte()


def reference(subject: Subject, mirrored: bool = False, black: bool = False) -> np.ndarray:
    """A subject as Encode Reference cuts it out, (128, 128, 3) uint8. `black`: its silhouette."""
    colours, mask = _colours(subject, black)
    if mirrored:
        colours, mask = colours.flip(1), mask.flip(1)
    return np.asarray(to_image(subject_on_white(colours[None], mask[None], SIZE)[0]))


def silhouettes(subjects: Sequence[Subject]) -> torch.Tensor:
    """How much of each latent pixel of `reference` is the subject, (subjects, 16, 16), 0…1, on DEVICE."""
    black = np.stack([reference(subject, black=True)[..., 0] for subject in subjects])
    return in_latent_pixels(1 - on_device(black) / 255)


def in_latent_pixels(masks: torch.Tensor) -> torch.Tensor:
    """Masks (masks, 128, 128), 0…1, as Scenes has them: (masks, 16, 16)."""
    return resize_mask(masks, SIZE // 8, SIZE // 8)


def of_subjects(cache: ReferenceCache, masks: torch.Tensor) -> ReferenceCache:
    """What Encode Reference gives with subject_only. `cache`: of one batch. `masks`: as Scenes has them."""
    (batch,) = cache.batches
    return replace(cache, batches=(replace(batch, subject=masks),))


def augmented_reference(subject: Subject, random: Random, black: bool = False) -> np.ndarray:
    """A reference of a subject as the training recipe makes them, (128, 128, 3) uint8. `black`: its silhouette."""
    return np.asarray(to_image(augment_reference(*_colours(subject, black), SIZE, random)))


def _colours(subject: Subject, black: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of its picture, (height, width, 3), and its mask, (height, width), both 0…1."""
    colours, mask = to_tensor(subject.picture()).split((3, 1), dim=-1)
    return torch.zeros_like(colours) if black else colours, mask[..., 0]


def _path(shard: int) -> Path:
    return FOLDER / f"{shard:04d}.safetensors"


def _draw_shard(shard: int) -> Drawn:
    torch.set_num_threads(1)
    return draw_scenes(trained_subjects(), [2, shard], SHARD)


def _encode(networks: Any, images: np.ndarray) -> torch.Tensor:
    """(pictures, 128, 128, 3) uint8 → latents as the U-Net reads them, (pictures, 4, 16, 16) float16."""
    parts = np.split(images, len(images) // 64)
    return torch.cat([encode(networks, as_tensor(part)) for part in parts]).half()


@torch.no_grad()
def encode(networks: Any, pictures: torch.Tensor) -> torch.Tensor:
    """(pictures, 3, 128, 128), 0…1 → latents as the U-Net reads them, (pictures, 4, 16, 16) float32.

    All at once, for ComfyUI's VAE takes one after the other.
    """
    autoencoder = networks.vae.first_stage_model.to(DEVICE)
    return networks.model.model.process_latent_in(autoencoder.encode(pictures * 2 - 1))
