"""The results page: what the demo model scores, in tables and contact sheets beside the paper's own numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from dreamcache.dreamcache_core.figures.contact_sheet import contact_sheet
from harness.environment import ROOT
from harness.markdown_table import markdown_table
from PIL import Image

from .adapter import Variant
from .artwork import DEMO
from .evaluation import (
    IMAGE_GUIDANCE,
    Case,
    Judge,
    Scores,
    Studio,
    cases,
    composite,
    held_out_subjects,
    pasted,
)
from .scenes import reference

PAGE = ROOT / "web" / "docs" / "demo_model.md"
IMAGES = ROOT / "web" / "docs" / "images"
SCORES = DEMO / "scores.json"

SHIPPED_SUBJECT = ("noto", "turtle")
STRIP = ("on a green meadow", "on a snowy field", "at sunset", "on a wooden table", "in a pink room", "in the water")
PAIRS = 50
VIEWS = (1, 2, 4)
COUNT = 120
"""Cases that are drawn: half of the held-out subjects."""
OF_VIEWS = 60
"""Of these, how many are drawn from several views."""
_ON_SHEET = 12

# The paper's CLIP-I and CLIP-T for the same question, and parameters of SD2.1's adapter (its tables 3, 4 and 5).
PAPER = {
    "as it ships": "0.810 / 0.298, 25 M",
    "the caption as prompt": "0.811 / 0.295, 25 M",
    "sum in place of concatenation": "0.812 / 0.293, 16 M",
    "encoder": "0.721 / 0.303, 11 M",
    "middle": "0.716 / 0.302, 8 M",
    "encoder and middle": "0.749 / 0.306, 19 M",
    "decoder": "0.799 / 0.296, 17 M",
    "all": "0.813 / 0.297, 36 M",
}

# (strength, image guidance): what Apply DreamCache is set to.
SETTINGS = ((0.5, 1.0), (1.0, 1.0), (1.25, 1.0), (1.0, 3.0), (1.0, 5.0), (1.0, 7.0))


def write_scores(studio: Studio, judge: Judge, adapter: Any) -> None:
    """Draw and measure everything but ablations, and write their tables and pictures into the page."""
    of = cases()[:COUNT]
    drawn: dict[str, list[np.ndarray]] = {
        "true composites (the ceiling)": [composite(case) for case in of],
        "no adapter (the floor)": studio.draw(of),
    }
    others = studio.draw(of, seed=1000)
    drawn["copy and paste"] = [pasted(picture, case.subject) for picture, case in zip(others, of, strict=True)]
    for strength, guidance in SETTINGS:
        name = f"DreamCache, strength {strength:g}" + (f", image guidance {guidance:g}" if guidance != 1 else "")
        drawn[name] = studio.draw(of, adapter, strength=strength, image_guidance=guidance)
        print(name, judge.measure(of, drawn[name]), flush=True)
    scores = {name: judge.measure(of, pictures) for name, pictures in drawn.items()}
    _keep({"scores": {name: asdict(score) for name, score in scores.items()}})
    write_table("scores", ("pictures", *_METRICS), [(name, *_cells(score)) for name, score in scores.items()])
    for kind in ("class", "drawing"):
        places = [place for place, case in enumerate(of) if case.subject.held_out == kind]
        pictures = drawn["DreamCache, strength 1"]
        part = judge.measure([of[place] for place in places], [pictures[place] for place in places])
        print(f"held out by {kind}: {part}", flush=True)
        _keep({f"held out by {kind}": asdict(part)})


def write_sheet(studio: Studio, judge: Judge, adapter: Any) -> None:
    """The page's picture: cases at equal distances, drawn without and with an adapter."""
    of = cases()[:: len(cases()) // _ON_SHEET][:_ON_SHEET]
    plain, others = studio.draw(of), studio.draw(of, seed=1000)
    columns = {
        "reference": [reference(case.subject) for case in of],
        "no adapter": plain,
        **{
            f"DreamCache, image guidance {guidance:g}": studio.draw(of, adapter, image_guidance=guidance)
            for guidance in (1.0, 3.0, IMAGE_GUIDANCE)
        },
        "copy and paste": [pasted(picture, case.subject) for picture, case in zip(others, of, strict=True)],
    }
    rows = [[Image.fromarray(picture) for picture in row] for row in zip(*columns.values(), strict=True)]
    sheet = contact_sheet(rows, [case.prompt for case in of], list(columns), side=128)
    sheet.save(IMAGES / "demo_results.jpg", quality=85)


def write_strip(studio: Studio, judge: Judge, adapter: Any) -> None:
    """The README's picture: the subject that ships, on some backgrounds, of the first seed."""
    (subject,) = (one for one in held_out_subjects() if (one.vendor, one.name) == SHIPPED_SUBJECT)
    of = [Case(subject, background) for background in STRIP]
    pictures = [Image.fromarray(reference(subject))]
    pictures += [Image.fromarray(picture) for picture in studio.draw(of, adapter, image_guidance=IMAGE_GUIDANCE)]
    columns = ["reference", *(case.prompt for case in of)]
    contact_sheet([pictures], ["A subject that the model has never seen"], columns, side=160).save(IMAGES / "demo.png")


def write_views(studio: Studio, judge: Judge, adapter: Any) -> None:
    """Draw and measure pictures from several views of a subject."""
    of = cases()[:OF_VIEWS]
    rows = []
    for views in VIEWS:
        pictures = [studio.draw_with_views(case, adapter, views, seed) for seed, case in enumerate(of)]
        score = judge.measure(of, pictures)
        print(f"{views} views: {score}", flush=True)
        rows.append((str(views), *_cells(score)))
        _keep({f"{views} views": asdict(score)})
    write_table("views", ("references", *_METRICS), rows)


def write_pairs(studio: Studio, judge: Judge, adapter: Any) -> None:
    """Draw two subjects side by side, and tell how often each is found in its half."""
    of = cases()
    pairs = [(of[2 * number], of[2 * number + 1]) for number in range(PAIRS)]
    # On one background, as a picture of two things is.
    pairs = [(left, Case(right.subject, left.background)) for left, right in pairs]
    pictures = [studio.draw_pair(*pair, adapter, seed) for seed, pair in enumerate(pairs)]
    halves = [np.stack([np.split(picture, 2, axis=1)[side] for picture in pictures]) for side in (0, 1)]
    found = [judge.name(half)[0] for half in halves]
    right = np.array([[pair[side].subject.key == found[side][n] for n, pair in enumerate(pairs)] for side in (0, 1)])
    true = [np.stack([composite(pair[side]) for pair in pairs]) for side in (0, 1)]
    known = [judge.name(half)[0] for half in true]
    ceiling = np.array([[pair[side].subject.key == known[side][n] for n, pair in enumerate(pairs)] for side in (0, 1)])
    rows = [
        (name, *(f"{100 * value:.0f} %" for value in (each.all(0).mean(), each[0].mean(), each[1].mean())))
        for name, each in (("two regions", right), ("true composites, side by side", ceiling))
    ]
    print(rows, flush=True)
    _keep({"pairs": rows})
    write_table("pairs", ("pictures", "both found", "left found", "right found"), rows)
    shown = [
        (
            *(Image.fromarray(reference(case.subject)) for case in pair),
            Image.fromarray(picture),
        )
        for pair, picture in list(zip(pairs, pictures, strict=True))[:_ON_SHEET]
    ]
    labels = [f"{left.prompt} | {right.subject.name}" for left, right in pairs[:_ON_SHEET]]
    sheet = contact_sheet(shown, labels, ["left", "right", "two regions"])
    sheet.save(IMAGES / "demo_pairs.jpg", quality=85)


@dataclass(frozen=True, eq=False)
class Ablation:
    """An adapter (as a ModelPatcher) that differs from the one that ships, and its loss of held-out scenes."""

    adapter: Any
    loss: float


def write_ablations(studio: Studio, judge: Judge, ablations: Mapping[Variant, Ablation], without: float) -> None:
    """Draw and measure with adapters that were trained alike, but for one thing each. `without`: loss of none."""
    of = cases()[:OF_VIEWS]
    score = judge.measure(of, studio.draw(of))
    rows = [("no adapter", "0", f"{without:.4f}", *_cells(score), "not reported")]
    for variant, ablation in ablations.items():
        pictures = studio.draw(of, ablation.adapter, variant=variant, image_guidance=IMAGE_GUIDANCE)
        score = judge.measure(of, pictures)
        print(f"{variant.name}: {score}", flush=True)
        _keep({f"ablation: {variant.name}": {"loss": ablation.loss, **asdict(score)}})
        parameters = f"{ablation.adapter.model.parameter_count:,}"
        rows.append(
            (variant.name, parameters, f"{ablation.loss:.4f}", *_cells(score), PAPER.get(variant.name, "not reported"))
        )
    head = ("adapter", "parameters", "loss", *_METRICS, "the paper's CLIP-I / CLIP-T, parameters")
    write_table("ablations", head, rows)


def write_table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put a table where the page has its name."""
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join(markdown_table(heads, rows))
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    text, count = re.subn(pattern, lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text, flags=re.DOTALL)
    assert count == 1, f"{PAGE} has no place for {name}"
    PAGE.write_text(text, encoding="utf-8")


_METRICS = ("subject found", "rank", "background right", "colour distance", "structure")


def _cells(score: Scores) -> Sequence[str]:
    rates = [f"{100 * rate:.1f} %" for rate in (score.retrieval, score.rank, score.background)]
    return (*rates, f"{score.colour:.3f}", f"{score.structure:.2f}")


def _keep(scores: Mapping[str, Any]) -> None:
    """In a file beside the others, for whoever asks again."""
    known = json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.exists() else {}
    SCORES.write_text(json.dumps({**known, **scores}, indent=1), encoding="utf-8")
