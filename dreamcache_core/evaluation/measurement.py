"""Measurement: the scores of all generated images in a folder, by subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import DreamCacheError
from .generated_images import GeneratedImage, read_manifest, read_settings
from .metrics import MaskedImage, MetricNetworks, Scores, SubjectMetrics, mean_scores
from .subjects import Subject, load_masked_image

# Image (height, width, 3), 0…1 → mask (height, width), 1 on the subject.
MaskFinder = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SubjectResult:
    """The scores of one subject's images. `scores`: one for each image, in the same order."""

    subject: Subject
    images: tuple[GeneratedImage, ...]
    scores: tuple[Scores, ...]

    @property
    def mean(self) -> Scores:
        return mean_scores(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """The scores of a folder of generated images.

    `missing`: names of the subjects without an image. `networks`: metric → description of its network. `settings`: how
    the images were generated, empty if that isn't known.
    """

    subjects: tuple[SubjectResult, ...]
    missing: tuple[str, ...]
    networks: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> Scores:
        """The mean of the subjects' means."""
        return mean_scores([result.mean for result in self.subjects])


@torch.no_grad()
def measure_images(
    folder: Path,
    subjects: Sequence[Subject],
    networks: MetricNetworks,
    find_mask: MaskFinder | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure the generated images of a folder.

    `find_mask`: finds the masks of images and references that have no mask file. `on_progress`: is called after each
    image with the number of measured images and of all images. Raises DreamCacheError if an image is missing or
    damaged, or if its subject is unknown.
    """
    images = read_manifest(folder)
    generated = {image.subject for image in images}
    unknown = generated - {subject.name for subject in subjects}
    if unknown:
        raise DreamCacheError(
            f"{folder} contains images of {min(unknown)}, which is not among the subjects: add its folder to the "
            "dataset."
        )
    results, done = [], 0
    for subject in (subject for subject in subjects if subject.name in generated):
        own = tuple(image for image in images if image.subject == subject.name)
        metrics = SubjectMetrics(networks, [_load(path, find_mask) for path in subject.references])
        scores = []
        for image in own:
            scores.append(metrics.measure(_load(folder / image.file, find_mask), image.prompt))
            done += 1
            on_progress(done, len(images))
        results.append(SubjectResult(subject, own, tuple(scores)))
    return Evaluation(
        subjects=tuple(results),
        missing=tuple(sorted({subject.name for subject in subjects} - generated)),
        networks=networks.descriptions,
        settings=read_settings(folder),
    )


def _load(path: Path, find_mask: MaskFinder | None) -> MaskedImage:
    loaded = load_masked_image(path)
    if loaded.mask is None and find_mask:
        return MaskedImage(loaded.image, find_mask(loaded.image))
    return loaded
