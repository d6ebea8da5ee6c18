"""What the results page shows: tables and contact sheets of the demo model, beside the paper's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.figures.contact_sheet import contact_sheet
from PIL import Image

from .adapter import AS_IT_SHIPS, VARIANTS, Variant
from .evaluation import (
    IMAGE_GUIDANCE,
    Case,
    Judge,
    Scores,
    Studio,
    cases,
    composite,
    held_out_subjects,
    mean,
    pasted,
)
from .page import Page
from .scenes import reference
from .world import SIZE

SHIPPED_SUBJECT = ("noto", "turtle")
STRIP = ("on a green meadow", "on a snowy field", "at sunset", "on a wooden table", "in a pink room", "in the water")
VIEWS = (1, 2, 4)
COUNT = 120
"""Cases that are drawn: half of the held-out subjects."""
OF_VIEWS = 60
"""Of these, how many are drawn from several views, and with each ablation."""
PAIRS = 50
SEEDS = 3
"""How often each ablation is trained."""
_ON_SHEET = 12
_SIDE = 2 * SIZE
"""Of a picture on a sheet: large enough to be looked at."""

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

# What Apply DreamCache and Encode Reference are set to.
SETTINGS: dict[str, dict[str, Any]] = {
    "DreamCache, strength 0.5": {"strength": 0.5},
    "DreamCache": {},
    "DreamCache, strength 1.25": {"strength": 1.25},
    **{f"DreamCache, image guidance {guidance}": {"image_guidance": float(guidance)} for guidance in (2, 3)},
    "DreamCache, subject_only": {"subject_only": True},
    "DreamCache, image guidance 2, subject_only": {"image_guidance": 2.0, "subject_only": True},
}
_KINDS = {"class": "no drawing of the thing was trained on", "drawing": "only other vendors' drawings were"}


@dataclass(frozen=True, eq=False)
class Results:
    """Draws, measures and writes the page. `adapter`: as Adapter Loader gives it. `count`: of cases; None for as many
    as the page has.
    """

    studio: Studio
    judge: Judge
    adapter: ModelPatcher
    page: Page
    count: int | None = None

    def write_scores(self) -> None:
        """The main table: every way of drawing each case."""
        of = self._first(COUNT)

        def copy_and_paste() -> list[np.ndarray]:
            others = self.studio.draw(of, seed=1000)
            return [pasted(picture, case.subject) for picture, case in zip(others, of, strict=True)]

        ways: dict[str, Callable[[], list[np.ndarray]]] = {
            "true composites (the ceiling)": lambda: [composite(case) for case in of],
            "no adapter (the floor)": lambda: self.studio.draw(of),
            "copy and paste": copy_and_paste,
        }
        for name, settings in SETTINGS.items():
            ways[name] = partial(self.studio.draw, of, self.adapter, **settings)
        scores = {name: self._measured(name, of, draw) for name, draw in ways.items()}
        self.page.write_table("scores", _HEADS, [(name, *_cells(mean(each))) for name, each in scores.items()])
        guided = f"DreamCache, image guidance {IMAGE_GUIDANCE:g}"
        rows = []
        for kind, words in _KINDS.items():
            part = [score for score, case in zip(scores[guided], of, strict=True) if case.subject.held_out == kind]
            if part:
                rows.append((words, str(len(part)), *_cells(mean(part))))
        self.page.write_table("kinds", ("held out", "cases", *_METRICS), rows)

    def write_sheet(self) -> None:
        """Cases at equal distances, drawn without and with an adapter."""
        of = cases()[:: len(cases()) // _ON_SHEET][: min(_ON_SHEET, self.count or _ON_SHEET)]
        columns = {
            "reference": [reference(case.subject) for case in of],
            "no adapter": self.studio.draw(of),
            **{
                f"image guidance {guidance:g}": self.studio.draw(of, self.adapter, image_guidance=guidance)
                for guidance in (1.0, 2.0, IMAGE_GUIDANCE)
            },
            "true composite": [composite(case) for case in of],
        }
        rows = list(zip(*columns.values(), strict=True))
        sheet = _sheet(rows, [case.prompt for case in of], list(columns))
        caption = "Held-out subjects: the reference, the model without an adapter, with it, and a true composite"
        self.page.write_image("sheet", sheet, "demo_results.jpg", caption)

    def write_strip(self) -> None:
        """The README's picture: the subject that ships, on some backgrounds, with the first seed."""
        (subject,) = (one for one in held_out_subjects() if (one.vendor, one.name) == SHIPPED_SUBJECT)
        of = [Case(subject, background) for background in STRIP]
        pictures = [reference(subject), *self.studio.draw(of, self.adapter, image_guidance=IMAGE_GUIDANCE)]
        columns = ["reference", *(case.prompt for case in of)]
        strip = _sheet([pictures], ["A subject that the model has never seen"], columns)
        caption = "A turtle that the demo model has never seen, from one picture of it, on six backgrounds"
        self.page.write_image("strip", strip, "demo.png", caption)

    def write_views(self) -> None:
        """Pictures from several views of each subject."""
        of = self._first(OF_VIEWS)

        def draw(views: int) -> list[np.ndarray]:
            return [self.studio.draw_with_views(case, self.adapter, views, seed) for seed, case in enumerate(of)]

        scores = {views: self._measured(f"{views} views", of, partial(draw, views)) for views in VIEWS}
        rows = [(str(views), *_cells(mean(each))) for views, each in scores.items()]
        self.page.write_table("views", ("references", *_METRICS), rows)

    def write_pairs(self) -> None:
        """Two subjects side by side, and how often each is found in its half."""
        of = cases()[: 2 * (self.count or PAIRS)]
        # On one background, as a picture of two things is.
        pairs = [(left, Case(right.subject, left.background)) for left, right in zip(of[::2], of[1::2], strict=True)]
        ways: dict[str, Callable[[int], np.ndarray]] = {
            "two regions": lambda number: self.studio.draw_pair(*pairs[number], self.adapter, number),
            "true composites, side by side": lambda number: np.concatenate(list(map(composite, pairs[number])), 1),
        }

        def found(draw: Callable[[int], np.ndarray]) -> list[list[bool]]:
            """Of each side, of which pairs."""
            pictures = np.stack([draw(number) for number in range(len(pairs))])
            return [
                [name == pair[side].subject.key for name, pair in zip(self.judge.name(half)[0], pairs, strict=True)]
                for side, half in enumerate(np.split(pictures, 2, axis=2))
            ]

        rows = []
        for name, draw in ways.items():
            right = np.array(self.page.measured(f"{name}, {len(pairs)} pairs", partial(found, draw)))
            rates = (right.all(0).mean(), *right.mean(1))
            rows.append((name, *(f"{100 * rate:.0f} %" for rate in rates)))
        self.page.write_table("pairs", ("pictures", "both found", "left found", "right found"), rows)
        shown = [
            (*(reference(case.subject) for case in pair), self.studio.draw_pair(*pair, self.adapter, seed))
            for seed, pair in enumerate(pairs[:_ON_SHEET])
        ]
        labels = [f"{left.prompt} | {right.subject.name}" for left, right in pairs[:_ON_SHEET]]
        sheet = _sheet(shown, labels, ["left", "right", "two regions"])
        self.page.write_image("pairs_sheet", sheet, "demo_pairs.jpg", "Two subjects in two regions")

    def _first(self, count: int) -> list[Case]:
        return cases()[: self.count or count]

    def _measured(self, name: str, of: Sequence[Case], draw: Callable[[], list[np.ndarray]]) -> list[Scores]:
        measured = self.page.measured(
            f"{name}, {len(of)} cases", lambda: [asdict(score) for score in self.judge.each(of, draw())]
        )
        return [Scores(**score) for score in measured]


def write_ablations(
    page: Page,
    studio: Studio,
    judge: Judge,
    train: Callable[[Variant | None, int], tuple[ModelPatcher | None, float]],
    steps: int,
    count: int,
) -> None:
    """Adapters that were trained alike, but for one thing each: the means over SEEDS seeds, and how far they differ.

    `train`: gives an adapter of a variant, trained with a seed, and its loss of held-out scenes; or of None, the loss
    without one. `steps`: that each is trained for. `count`: of cases.
    """
    of = cases()[:count]

    def ablate(variant: Variant | None, seed: int) -> dict[str, Any]:
        adapter, loss = train(variant, seed)
        pictures = studio.draw(
            of, adapter, 1000 * seed, variant or AS_IT_SHIPS, image_guidance=IMAGE_GUIDANCE if adapter else 1.0
        )
        parameters = adapter.model.parameter_count if adapter else 0
        return {"parameters": parameters, "loss": loss, "scores": asdict(judge.measure(of, pictures))}

    rows = []
    for variant in (None, *VARIANTS):
        name = variant.name if variant else "no adapter"
        measured = [
            page.measured(f"{name}, {steps} steps, seed {seed}, {count} cases", partial(ablate, variant, seed))
            for seed in range(SEEDS)
        ]
        of_seeds = [[one["loss"], *astuple(Scores(**one["scores"]))] for one in measured]
        loss, *scores = zip(np.mean(of_seeds, 0), np.std(of_seeds, 0, ddof=1), strict=True)
        cells = [f"{loss[0]:.4f} ± {loss[1]:.4f}"]
        cells += [f"{100 * value:.1f} ± {100 * spread:.1f} %" for value, spread in scores[:3]]
        cells += [f"{value:.3f} ± {spread:.3f}" for value, spread in scores[3:]]
        rows.append((name, f"{measured[0]['parameters']:,}", *cells, PAPER.get(name, "not reported")))
    head = ("adapter", "parameters", "loss", *_METRICS, "the paper's CLIP-I / CLIP-T, parameters")
    page.write_table("ablations", head, rows)


_METRICS = ("subject found", "rank", "background right", "colour distance", "structure")
_HEADS = ("pictures", *_METRICS)


def _cells(score: Scores) -> Sequence[str]:
    rates = [f"{100 * rate:.1f} %" for rate in (score.retrieval, score.rank, score.background)]
    return (*rates, f"{score.colour:.3f}", f"{score.structure:.2f}")


def _sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A contact sheet of pictures, each twice as large as it was drawn."""
    images = [[Image.fromarray(picture) for picture in row] for row in rows]
    return contact_sheet(images, labels, columns, _SIDE)
