"""Results: an evaluation written as JSON, as a Markdown table and as a contact sheet."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..figures.contact_sheet import contact_sheet
from ..io.atomic import write_atomically
from ..io.failures import writing
from ..io.images import read_image
from .generated_images import GeneratedImage
from .measurement import Evaluation
from .metrics import METRICS, Scores, describe_scores
from .subjects import PLACEHOLDER, Subject

_FORMAT, _VERSION = "dreamcache.evaluation", 1
# Side of an image in the contact sheet, in pixels.
_SHEET_SIDE = 192


def save_evaluation(evaluation: Evaluation, images: Path, folder: Path) -> None:
    """Write `results.json`, `results.md` and `contact_sheet.jpg`. `images`: the folder that was measured.

    Raises DreamCacheError if they can't be written.
    """
    sheet = io.BytesIO()
    to_contact_sheet(evaluation, images).save(sheet, "JPEG", quality=90)
    with writing(folder):
        for name, text in (
            ("results.json", json.dumps(to_json(evaluation), indent=2, ensure_ascii=False)),
            ("results.md", to_table(evaluation)),
        ):
            write_atomically(folder / name, text.encode(errors="replace"))
        write_atomically(folder / "contact_sheet.jpg", sheet.getbuffer())


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything in an evaluation, down to the scores of each image. The keys are a file format."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "yardsticks": evaluation.networks,
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
                    {**asdict(image), "scores": scores}
                    for image, scores in zip(result.images, result.scores, strict=True)
                ],
            }
            for result in evaluation.subjects
        ],
    }


def to_table(evaluation: Evaluation) -> str:
    """A Markdown table of the mean scores, followed by a list of the networks that measured them."""
    metrics = [metric for metric in METRICS if metric in evaluation.mean]
    count = sum(len(result.images) for result in evaluation.subjects)
    rows = [
        ["subject", "pictures", *metrics],
        ["---"] * (2 + len(metrics)),
        *(
            [result.subject.name, str(len(result.images)), *_cells(result.mean, metrics)]
            for result in evaluation.subjects
        ),
        ["**mean**", str(count), *_cells(evaluation.mean, metrics)],
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {metric}: {network}" for metric, network in evaluation.networks.items())]
    if evaluation.missing:
        lines.append(f"- There are no images of {', '.join(evaluation.missing)}.")
    return "\n".join(lines) + "\n"


def to_contact_sheet(evaluation: Evaluation, folder: Path) -> Image.Image:
    """A row for each subject: its first reference, and the first image of each prompt.

    Prompts that differ only in the subject's class share a column. `folder`: the folder that was measured.
    """
    templates = dict.fromkeys(
        _template(result.subject, image) for result in evaluation.subjects for image in result.images
    )
    rows = []
    for result in evaluation.subjects:
        # In reverse, so that the first image of a prompt is the one that stays.
        first = {_template(result.subject, image): folder / image.file for image in reversed(result.images)}
        paths = [result.subject.references[0], *(first.get(template) for template in templates)]
        rows.append([_read_small(path) if path else None for path in paths])
    labels = [f"{result.subject.name}: {describe_scores(result.mean)}" for result in evaluation.subjects]
    return contact_sheet(rows, labels, ["reference", *templates], _SHEET_SIDE)


def _template(subject: Subject, image: GeneratedImage) -> str:
    """The image's prompt with PLACEHOLDER for the subject's class."""
    return re.sub(rf"\b{re.escape(subject.class_name)}\b", PLACEHOLDER, image.prompt)


def _read_small(path: Path) -> Image.Image:
    image = read_image(path.read_bytes, str(path))
    image.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
    return image


def _cells(scores: Scores, metrics: Sequence[str]) -> list[str]:
    return [f"{scores[metric]:.3f}" if metric in scores else "" for metric in metrics]
