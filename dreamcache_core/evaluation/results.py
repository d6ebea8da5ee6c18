"""Evaluation of an adapter, or of any other method, on a folder of subjects: what to draw, and how good that is.

What was drawn lies in a folder, with a line of JSON for each picture in its `manifest.jsonl`:

    {"file": "dog2/00_0.png", "subject": "dog2", "prompt": "a dog in the jungle", "seed": 0}

`seed` may be missing, and so may `settings.json`, which holds whatever should be told beside the results. Masks lie
beside their pictures, as references' do (see subjects.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import DreamCacheError
from ..figures.contact_sheet import contact_sheet
from ..io.images import read_picture, to_image
from .metrics import METRICS, Picture, Scores, SubjectMeasure, Yardsticks, mean_scores
from .subjects import PLACEHOLDER, Subject, load_picture

# Gives the mask (height, width) of an image (height, width, 3).
MaskFinder = Callable[[torch.Tensor], torch.Tensor]

MANIFEST, SETTINGS = "manifest.jsonl", "settings.json"

_FORMAT, _VERSION = "dreamcache.evaluation", 1
_SHEET_SIDE = 192


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn, or to be drawn. `file`: in the folder of them all."""

    file: str
    subject: str
    prompt: str
    seed: int | None = None


@dataclass(frozen=True)
class SubjectResult:
    """What one subject's pictures measure. `scores`: of each drawing, in their order."""

    subject: Subject
    drawings: tuple[Drawing, ...]
    scores: tuple[Scores, ...]

    @property
    def mean(self) -> Scores:
        return mean_scores(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """What a folder of drawings measures. `yardsticks`: metric → network. `settings`: of drawing, as far as known.

    `missing`: names of subjects that nothing was drawn of.
    """

    subjects: tuple[SubjectResult, ...]
    missing: tuple[str, ...]
    yardsticks: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> Scores:
        """The mean of the subjects' means."""
        return mean_scores([result.mean for result in self.subjects])


# --- Drawing ---------------------------------------------------------------------------------------------------------


def plan_drawings(subjects: Sequence[Subject], seeds: int, folder: Path, settings: Mapping[str, Any]) -> list[Drawing]:
    """What is still to be drawn into a folder of each subject with each of its prompts, with seeds from 0 on.

    Raises DreamCacheError if there are drawings of other settings or other prompts in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.is_file():
        others = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in others.keys() | settings.keys() if others.get(name) != settings.get(name)]
        if differing:
            raise DreamCacheError(
                f"{folder} contains images generated with a different {' and '.join(sorted(differing))}: choose "
                "another folder."
            )
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    drawn = {drawing.file: drawing for drawing in read_manifest(folder)} if (folder / MANIFEST).is_file() else {}
    drawings = [
        Drawing(f"{subject.name}/{number:02}_{seed}.png", subject.name, prompt, seed)
        for subject in subjects
        for seed in range(seeds)
        for number, prompt in enumerate(subject.prompts)
    ]
    for drawing in drawings:
        if drawn.get(drawing.file, drawing) != drawing:
            raise DreamCacheError(
                f"{folder / drawing.file} was generated from a different prompt than the subject has now: choose "
                "another folder."
            )
    return [drawing for drawing in drawings if drawing.file not in drawn]


def save_drawing(folder: Path, drawing: Drawing, image: torch.Tensor) -> None:
    """Write a picture (height, width, 3), 0…1, and then its line of the manifest."""
    path = folder / drawing.file
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(image).save(path)
    with (folder / MANIFEST).open("a", encoding="utf-8") as manifest:
        manifest.write(json.dumps(asdict(drawing), ensure_ascii=False) + "\n")


# --- Measuring -------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> list[Drawing]:
    """The drawings of a folder. Raises DreamCacheError if there are none, or if a line tells of none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DreamCacheError(
            f'{folder} has no {MANIFEST}: generate images into it first, or write a line {{"file": …, "subject": …, '
            '"prompt": …}} for each image.'
        )
    drawings = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            drawings.append(
                Drawing(**{field.name: entry[field.name] for field in fields(Drawing) if field.name in entry})
            )
        except (ValueError, TypeError) as error:
            raise DreamCacheError(
                f'Line {number} of {path} is not of the form {{"file": …, "subject": …, "prompt": …}}: correct or '
                "remove it."
            ) from error
    if not drawings:
        raise DreamCacheError(f"{path} is empty, so there is nothing to score.")
    return drawings


@torch.no_grad()
def measure_drawings(
    folder: Path,
    subjects: Sequence[Subject],
    yardsticks: Yardsticks,
    find_mask: MaskFinder | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure the drawings of a folder.

    `find_mask`: for pictures that have no mask beside them.
    `on_progress` hears how many drawings are done, and of how many.
    Raises DreamCacheError if a drawing is damaged or missing, or if it is of none of the subjects.
    """
    drawings = read_manifest(folder)
    drawn = {drawing.subject for drawing in drawings}
    unknown = drawn - {subject.name for subject in subjects}
    if unknown:
        raise DreamCacheError(
            f"{folder} contains images of {min(unknown)}, which is not among the subjects: add its folder to the "
            "dataset."
        )
    results, done = [], 0
    for subject in (subject for subject in subjects if subject.name in drawn):
        its = tuple(drawing for drawing in drawings if drawing.subject == subject.name)
        measure = SubjectMeasure(yardsticks, [_load(path, find_mask) for path in subject.references])
        scores = []
        for drawing in its:
            scores.append(measure.measure(_load(folder / drawing.file, find_mask), drawing.prompt))
            done += 1
            on_progress(done, len(drawings))
        results.append(SubjectResult(subject, its, tuple(scores)))
    settings = folder / SETTINGS
    return Evaluation(
        subjects=tuple(results),
        missing=tuple(sorted({subject.name for subject in subjects} - drawn)),
        yardsticks=yardsticks.descriptions,
        settings=json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {},
    )


def _load(path: Path, find_mask: MaskFinder | None) -> Picture:
    picture = load_picture(path)
    if picture.mask is None and find_mask:
        return Picture(picture.image, find_mask(picture.image))
    return picture


# --- Results ---------------------------------------------------------------------------------------------------------


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """All there is to tell of an evaluation, scores of single drawings included."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "yardsticks": evaluation.yardsticks,
        "settings": evaluation.settings,
        "mean": evaluation.mean,
        "missing": evaluation.missing,
        "subjects": [
            {
                "name": result.subject.name,
                "class": result.subject.class_name,
                "references": [path.name for path in result.subject.references],
                "mean": result.mean,
                "drawings": [
                    {**asdict(drawing), "scores": scores}
                    for drawing, scores in zip(result.drawings, result.scores, strict=True)
                ],
            }
            for result in evaluation.subjects
        ],
    }


def to_table(evaluation: Evaluation) -> str:
    """A Markdown table of the means, and what was measured with what."""
    metrics = [metric for metric in METRICS if metric in evaluation.mean]
    count = sum(len(result.drawings) for result in evaluation.subjects)
    rows = [
        ["subject", "pictures", *metrics],
        ["---"] * (2 + len(metrics)),
        *(
            [result.subject.name, str(len(result.drawings)), *_numbers(result.mean, metrics)]
            for result in evaluation.subjects
        ),
        ["**mean**", str(count), *_numbers(evaluation.mean, metrics)],
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {metric}: {network}" for metric, network in evaluation.yardsticks.items())]
    if evaluation.missing:
        lines.append(f"- There are no images of {', '.join(evaluation.missing)}.")
    return "\n".join(lines) + "\n"


def to_sheet(evaluation: Evaluation, folder: Path) -> Image.Image:
    """A contact sheet: a row for each subject, with its reference and the first drawing of each of its prompts."""
    prompts = dict.fromkeys(
        _template(result.subject, drawing) for result in evaluation.subjects for drawing in result.drawings
    )
    rows = []
    for result in evaluation.subjects:
        # Backwards, so that the first of a prompt stands.
        first = {_template(result.subject, drawing): folder / drawing.file for drawing in reversed(result.drawings)}
        paths = [result.subject.references[0], *(first.get(prompt) for prompt in prompts)]
        rows.append([_small(path) if path else None for path in paths])
    labels = [f"{result.subject.name}: {describe_scores(result.mean)}" for result in evaluation.subjects]
    return contact_sheet(rows, labels, ["reference", *prompts], _SHEET_SIDE)


def save_evaluation(evaluation: Evaluation, drawings: Path, folder: Path) -> None:
    """Write `results.json`, `results.md` and `contact_sheet.jpg`. `drawings`: the folder that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(
        json.dumps(to_json(evaluation), indent=2, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "results.md").write_text(to_table(evaluation), encoding="utf-8")
    to_sheet(evaluation, drawings).save(folder / "contact_sheet.jpg", quality=90)


def describe_scores(scores: Scores) -> str:
    return ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items())


def _template(subject: Subject, drawing: Drawing) -> str:
    """The prompt as it is for all subjects."""
    return re.sub(rf"\b{re.escape(subject.class_name)}\b", PLACEHOLDER, drawing.prompt)


def _small(path: Path) -> Image.Image:
    image = read_picture(path.read_bytes, str(path))
    image.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
    return image


def _numbers(scores: Scores, metrics: Sequence[str]) -> list[str]:
    return [f"{scores[metric]:.3f}" if metric in scores else "" for metric in metrics]
