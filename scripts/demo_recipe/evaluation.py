"""How good the demo model is on subjects it was never trained on: cases, pictures of them, and what they score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.generation import GenerationSettings
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.nodes.host.demo_network import DemoNetworks
from dreamcache.nodes.host.generation import generate, inject_reference
from dreamcache.nodes.host.patching.caching_pass import record_references
from dreamcache.nodes.host.reference import encode_reference
from PIL import Image

from .adapter import AS_IT_SHIPS, Variant
from .artwork import Subject, subjects
from .loop import DEVICE
from .scenes import SEEN, augmented_reference, of_subjects, reference, seen, silhouettes
from .world import BACKGROUNDS, SIZE, caption, draw_scene
from .yardstick import Yardstick

SAMPLING = GenerationSettings(steps=20, cfg=2.0, sampler="euler", scheduler="normal", resolution=SIZE)
IMAGE_GUIDANCE = 2.0
"""What the template sets Apply DreamCache to."""
TOGETHER = 24
"""Pictures that are drawn as one batch."""


@dataclass(frozen=True, eq=False)
class Case:
    """A picture to draw: a held-out subject on a background."""

    subject: Subject
    background: str

    @property
    def prompt(self) -> str:
        return caption(self.subject.name, self.background)


def held_out_subjects() -> list[Subject]:
    """All of them, which are what the right one is looked for among."""
    return [subject for subject in subjects() if subject.held_out]


def cases() -> list[Case]:
    """Each held-out subject once, on backgrounds that come as often as each other."""
    # White is what references have, and says nothing of prompts.
    names = [name for name in BACKGROUNDS if "white" not in name]
    held_out = held_out_subjects()
    order = np.random.default_rng(8).permutation(len(held_out))
    return [Case(held_out[place], names[number % len(names)]) for number, place in enumerate(order)]


def composite(case: Case, seed: int = 0) -> np.ndarray:
    """The case as the world has it, (128, 128, 3) uint8."""
    random = np.random.default_rng([9, seed, int.from_bytes(case.prompt.encode(), "little") % 2**32])
    return draw_scene(case.subject, case.background, random).image


def pasted(picture: np.ndarray, subject: Subject) -> np.ndarray:
    """A picture with the subject's own cutout in its middle: what one gets without a model that reads references."""
    cutout = subject.picture()
    cutout = cutout.resize([round(side * 0.8 * SIZE / max(cutout.size)) for side in cutout.size])
    canvas = Image.fromarray(picture)
    left, top = ((SIZE - side) // 2 for side in cutout.size)
    canvas.paste(cutout, (left, top), cutout)
    return np.asarray(canvas)


@dataclass(frozen=True)
class Scores:
    """Of a picture, or the means of some. `retrieval`: how often the subject is found among all held-out ones. `rank`:
    of how many of the others, 0…1, the picture is less like. `background`: how often it is the one that was asked for.
    `colour`: distance of the subject's colours, 0…1, and `structure`: correlation of its brightness, -1…1, both where
    the subject fits best.
    """

    retrieval: float
    rank: float
    background: float
    colour: float
    structure: float


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean of each of them."""
    return Scores(*np.mean([astuple(score) for score in scores], axis=0).tolist())


class Judge:
    """Measures pictures of cases, with a trained yardstick."""

    def __init__(self, yardstick: Yardstick) -> None:
        self._yardstick = yardstick.to(DEVICE).eval()
        self._subjects = [subject.key for subject in held_out_subjects()]
        self._gallery = self._see(np.stack([reference(subject) for subject in held_out_subjects()]))[0]

    def measure(self, of: Sequence[Case], pictures: Sequence[np.ndarray]) -> Scores:
        """The means of `each`."""
        return mean(self.each(of, pictures))

    def each(self, of: Sequence[Case], pictures: Sequence[np.ndarray]) -> list[Scores]:
        """The scores of each case. `pictures`: each (128, 128, 3) uint8."""
        images = np.stack(pictures)
        likeness, logits = self._compare(images)
        found, backgrounds = self._names(likeness, logits)
        right = likeness[range(len(of)), [self._subjects.index(case.subject.key) for case in of]]
        ranks = (likeness < right.unsqueeze(1)).sum(1) / (len(self._subjects) - 1)
        return [
            Scores(
                float(found[place] == case.subject.key),
                float(ranks[place]),
                float(backgrounds[place] == case.background),
                *best_fit(case.subject, images[place]),
            )
            for place, case in enumerate(of)
        ]

    def name(self, images: np.ndarray) -> tuple[list[str], list[str]]:
        """Key of the held-out subject that each picture is likest to, and its background."""
        return self._names(*self._compare(images))

    def _compare(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Likeness of each picture to each held-out subject, and its logits of backgrounds."""
        embeddings, logits = self._see(images)
        return embeddings @ self._gallery.T, logits

    def _names(self, likeness: torch.Tensor, logits: torch.Tensor) -> tuple[list[str], list[str]]:
        found, backgrounds = (scores.argmax(1).tolist() for scores in (likeness, logits))
        names = list(BACKGROUNDS)
        return [self._subjects[place] for place in found], [names[place] for place in backgrounds]

    @torch.no_grad()
    def _see(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [
            self._yardstick(seen(part).float() / 255) for part in np.array_split(images, max(1, len(images) // 32))
        ]
        embeddings, logits = zip(*parts, strict=True)
        return torch.cat(embeddings), torch.cat(logits)


_SIZES = (0.65, 0.73, 0.82, 0.9)
_TURNS = (-8, 0, 8)


@torch.no_grad()
def best_fit(subject: Subject, image: np.ndarray) -> tuple[float, float]:
    """Where a subject fits best into a picture, at any place, in some sizes and turns, mirrored or not: how far the
    colours there are from its own (root of the mean square, 0…1), and how well brightness correlates with its own.
    """
    picture = torch.from_numpy(image.copy()).movedim(-1, 0).float()[None] / 255
    small = F.avg_pool2d(picture, SIZE // SEEN)
    best, structure = 1.0, 0.0
    for size in _SIZES:
        for turn in _TURNS:
            for flipped in (False, True):
                colours, mask = _template(subject, size, turn, flipped)
                weight = mask / mask.sum()
                # The sum of weight · (picture - colours)², at every place at once.
                squares = F.conv2d(small.square().sum(1, keepdim=True), weight[None, None])
                products = F.conv2d(small, (weight * colours)[None])
                distance = (squares - 2 * products + (weight * colours.square()).sum()) / 3
                place = int(distance.argmin())
                found = float(distance.flatten()[place].clamp(min=0).sqrt())
                if found < best:
                    top, left = divmod(place, distance.shape[-1])
                    under = small[0, :, top : top + mask.shape[0], left : left + mask.shape[1]]
                    best, structure = found, _correlation(under.mean(0), colours.mean(0), weight)
    return best, structure


def _template(subject: Subject, size: float, turn: float, flipped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours (3, height, width) and mask (height, width) of a subject, 0…1."""
    picture = subject.picture()
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else picture
    picture = picture.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    scale = size * SEEN / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    tensor = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0).float() / 255
    return tensor[:3], tensor[3]


def _correlation(first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor) -> float:
    first, second = (each - (weight * each).sum() for each in (first, second))
    product = (weight * first * second).sum()
    return float(product / ((weight * first.square()).sum() * (weight * second.square()).sum()).sqrt().clamp(min=1e-6))


@dataclass(frozen=True, eq=False)
class Studio:
    """Draws cases as the nodes do."""

    networks: DemoNetworks

    @torch.no_grad()
    def draw(
        self,
        of: Sequence[Case],
        adapter: ModelPatcher | None = None,
        seed: int = 0,
        variant: Variant = AS_IT_SHIPS,
        subject_only: bool = False,
        **changes: Any,
    ) -> list[np.ndarray]:
        """A picture of each case, (128, 128, 3) uint8. `adapter`: as Adapter Loader gives it; None draws without.

        `variant`: of the adapter, which says how references are cached for it. `subject_only`: as Encode Reference has
        it. `changes`: of GenerationSettings.
        """
        pictures: list[np.ndarray] = []
        for start in range(0, len(of), TOGETHER):
            some = of[start : start + TOGETHER]
            settings = replace(SAMPLING, seed=seed + start, **changes)
            model = self.networks.model
            if adapter is not None:
                cache = replace(self._cache(some, variant), per_latent=True)
                if subject_only:
                    cache = of_subjects(cache, silhouettes([case.subject for case in some]))
                model = inject_reference(model, adapter, cache, settings)
            pictures += self._draw(model, self._encode([case.prompt for case in some]), SIZE, settings, len(some))
        return pictures

    @torch.no_grad()
    def draw_with_views(self, case: Case, adapter: ModelPatcher, views: int, seed: int) -> np.ndarray:
        """A picture of a case from so many views of its subject, each as the training recipe makes references: moved,
        mirrored or not, and with something in front of it in two of five.
        """
        references = [augmented_reference(case.subject, Random(f"{case.subject.key}/{view}")) for view in range(views)]
        settings = replace(SAMPLING, seed=seed, image_guidance=IMAGE_GUIDANCE)
        cache = self._encode_references(_images(references), 1)
        model = inject_reference(self.networks.model, adapter, cache, settings)
        return self._draw(model, self._encode([case.prompt]), SIZE, settings)[0]

    @torch.no_grad()
    def draw_pair(self, left: Case, right: Case, adapter: ModelPatcher, seed: int) -> np.ndarray:
        """Two subjects side by side, (128, 256, 3) uint8: each has its prompt's area, and is Apply's region."""
        settings = replace(SAMPLING, seed=seed, image_guidance=IMAGE_GUIDANCE)
        model, positive, side = self.networks.model, [], SIZE // 8
        for place, case in enumerate((left, right)):
            region = torch.zeros(1, side, 2 * side)
            region[..., place * side : (place + 1) * side] = 1
            model = inject_reference(model, adapter, self._cache([case], AS_IT_SHIPS), settings, region=region)
            ((context, values),) = self._encode([case.prompt])
            area = (side, side, 0, place * side)
            positive.append([context, {**values, "area": area, "set_area_to_bounds": False, "strength": 1.0}])
        return self._draw(model, positive, 2 * SIZE, settings)[0]

    def _cache(self, some: Sequence[Case], variant: Variant) -> ReferenceCache:
        """What the model sees in the reference of each."""
        references = _images([reference(case.subject) for case in some])
        if not variant.caption:
            return self._encode_references(references, variant.timestep)
        latents = self.networks.vae.encode(references)
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal(latents.shape, dtype=np.float32))
        prompts = [case.prompt for case in some]
        return record_references(
            self.networks.model, latents, noise, self._encode(prompts), variant.timestep, "captions"
        )

    def _encode_references(self, references: torch.Tensor, timestep: int) -> ReferenceCache:
        """What Encode Reference gives of references (batch, 128, 128, 3), 0…1."""
        networks = self.networks
        return encode_reference(
            networks.model, networks.vae, networks.clip, references, timestep=timestep, resolution=SIZE
        )

    def _draw(
        self, model: ModelPatcher, positive: list, width: int, settings: GenerationSettings, batch: int = 1
    ) -> list[np.ndarray]:
        latent = {"samples": torch.zeros(batch, 4, SIZE // 8, width // 8)}
        drawn = generate(model, self.networks.vae, positive, self._encode([""]), latent, settings)
        return list((drawn.clamp(0, 1) * 255).round().byte().numpy())

    def _encode(self, prompts: Sequence[str]) -> list:
        clip = self.networks.clip
        conditionings = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0] for prompt in prompts]
        # As ComfyUI does with prompts of several lengths, which are multiples of 16 tokens.
        tokens = math.lcm(*(context.shape[1] for context, _ in conditionings))
        contexts = [context.repeat(1, tokens // context.shape[1], 1) for context, _ in conditionings]
        return [[torch.cat(contexts), conditionings[0][1]]]


def _images(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Pictures (height, width, 3) uint8 as ComfyUI's images, (batch, height, width, 3), 0…1."""
    return torch.from_numpy(np.stack(pictures)).float() / 255
