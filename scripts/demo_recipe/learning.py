"""How an adapter of the demo model learns: from which start, from how many subjects, over how many samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.training.loss import loss_at, sample_noise
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.nodes.host.frozen_base import FITTED_ON, begin_as_the_model
from dreamcache.nodes.host.patching.injection import wrap_adapter

from .adapter import AS_IT_SHIPS, DemoBase, Training
from .artwork import trained_subjects
from .evaluation import IMAGE_GUIDANCE, Judge, Studio, cases
from .loop import on_device
from .page import Page
from .scenes import Scenes

STEPS = 100
CASES = 24
SEEDS = (0, 1, 2)
SUBJECTS = (10, 100)
_BATCH = 8
_PAPER = ("9,600,000, the paper's", "its own", "400,000", *["not measured"] * 3)
_SAMPLER_STEPS = 10
_TOGETHER = 48


@dataclass(frozen=True)
class Measured:
    """Mean losses of unseen scenes after so many samples: with the right reference, another's, and none.

    `found`: how often a drawn picture shows its subject, as Scores have it, 0…1, or None where none was drawn.
    """

    samples: int
    right: float
    other: float
    none: float
    found: float | None = None

    @property
    def gap(self) -> float:
        return self.other - self.right


Start = Callable[[DemoBase, Adapter, Scenes, int], None]


def untouched(base: DemoBase, adapter: Adapter, scenes: Scenes, seed: int) -> None:
    """Today's start: random weights, and a Linear that passes the self-attention on alone."""


def own_attention(base: DemoBase, adapter: Adapter, scenes: Scenes, seed: int) -> None:
    """The model's own attention, fitted, and the same Linear."""
    chosen = np.random.default_rng([21, seed]).permutation(len(scenes))[:FITTED_ON]
    begin_as_the_model(base, adapter, [scenes.references[on_device(chosen)].float()], seed)


STARTS: dict[str, Start] = {"random": untouched, "own attention": own_attention}


@dataclass(frozen=True, eq=False)
class Learners:
    """Trains adapters for `steps` each, and measures them on `unseen` scenes and on pictures of so many `cases`."""

    studio: Studio
    judge: Judge
    scenes: Scenes
    unseen: Scenes
    steps: int
    cases: int

    def learn(self, start: str, subjects: int, seed: int) -> list[dict[str, Any]]:
        """Train on scenes of so many subjects. Returns a Measured after half of the steps and after all."""
        training, scenes = Training(self.studio.networks), of_subjects(self.scenes, subjects)
        settings = replace(training.settings(self.steps, seed), batch=_BATCH)
        adapter = training.untrained(AS_IT_SHIPS, seed)
        base = training.base_of(adapter, AS_IT_SHIPS)
        base.load()
        STARTS[start](base, adapter, scenes, seed)
        trainer, measured = Trainer(base, adapter, settings), []
        for progress in trainer.run(training.batches(base, scenes, settings)):
            if progress.step in (self.steps // 2, self.steps):
                with trainer.averaged_weights():
                    measured.append(Measured(progress.step * _BATCH, *measure(base, self.unseen)))
        measured[-1] = self._drawn(measured[-1], trainer.averaged_adapter())
        return [asdict(one) for one in measured]

    def measure_trained(self, adapter: Adapter, samples: int) -> list[dict[str, Any]]:
        """The same of an adapter that has been trained on so many samples."""
        base = Training(self.studio.networks).base_of(adapter, AS_IT_SHIPS)
        base.load()
        return [asdict(self._drawn(Measured(samples, *measure(base, self.unseen)), adapter))]

    def _drawn(self, measured: Measured, adapter: Adapter) -> Measured:
        of = cases()[: self.cases]
        drawn = self.studio.draw(of, wrap_adapter(adapter), image_guidance=IMAGE_GUIDANCE, steps=_SAMPLER_STEPS)
        return replace(measured, found=self.judge.measure(of, drawn).retrieval)


def write_learning(page: Page, learners: Learners, trained: Adapter) -> None:
    """Compare the starts with the same seeds, then the better of them with fewer subjects.

    `trained`: the adapter that ships, for a tick that is further away.
    """
    every = len(set(learners.scenes.subjects))

    def measured(start: str, subjects: int, seed: int) -> list[Measured]:
        of = f"{subjects} subjects in {len(of_subjects(learners.scenes, subjects))} scenes"
        row = f"learning from {start}, {of}, {learners.steps} steps, seed {seed}, {learners.cases} cases"
        known = page.measured(row, partial(learners.learn, start, subjects, seed))
        return [Measured(**one) for one in known]

    by_seed = [{start: measured(start, every, seed) for start in STARTS} for seed in SEEDS]
    runs = {start: [of_seed[start] for of_seed in by_seed] for start in STARTS}
    page.write_table("starts", _STARTS_HEAD, [row for start in STARTS for row in _of_start(start, runs[start])])

    better = max(STARTS, key=lambda start: sum(run[-1].gap for run in runs[start]))
    rows = []
    for subjects in (*SUBJECTS, every):
        scenes = f"{len(of_subjects(learners.scenes, subjects)):,}"
        for at in measured(better, subjects, 0):
            rows.append((f"{at.samples:,}", f"{subjects:,}", scenes, *_cells(at)))
    samples = sum(training.batch * training.steps for training in trained.provenance)
    (known,) = page.measured(f"what ships, {learners.cases} cases", partial(learners.measure_trained, trained, samples))
    rows.append(
        (
            f"{samples:,}, trained with the U-Net",
            f"{len(trained_subjects()):,}",
            "new ones at each step",
            *_cells(Measured(**known)),
        )
    )
    page.write_table("subjects", _SUBJECTS_HEAD, [*rows, _PAPER])


_STARTS_HEAD = ("start", "samples", "gap", "loss, right reference", "loss, another's", "subject found")
_SUBJECTS_HEAD = ("samples", "subjects", "scenes", "gap", "loss, right reference", "subject found")


def _of_start(start: str, runs: Sequence[Sequence[Measured]]) -> Sequence[Sequence[str]]:
    """Means over seeds, and how far they differ."""
    rows = []
    for seeds in zip(*runs, strict=True):
        gap, right, other = (
            f"{np.mean(of):.4f} ± {np.std(of, ddof=1):.4f}"
            for of in ([getattr(at, name) for at in seeds] for name in ("gap", "right", "other"))
        )
        found = [100 * at.found for at in seeds if at.found is not None]
        drawn = f"{np.mean(found):.0f} ± {np.std(found, ddof=1):.0f} %" if found else ""
        rows.append((start, f"{seeds[0].samples:,}", gap, right, other, drawn))
    return rows


def _cells(at: Measured) -> tuple[str, ...]:
    return f"{at.gap:.4f}", f"{at.right:.4f}", "" if at.found is None else f"{100 * at.found:.0f} %"


def of_subjects(scenes: Scenes, count: int) -> Scenes:
    """Those of `count` of the subjects, evenly chosen."""
    keys = sorted(set(scenes.subjects))
    kept = {keys[number * len(keys) // count] for number in range(count)}
    return choose(scenes, [place for place, subject in enumerate(scenes.subjects) if subject in kept])


def choose(scenes: Scenes, places: Sequence[int]) -> Scenes:
    """Some of the scenes, in this order."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(scenes):
        values = getattr(scenes, field.name)
        if isinstance(values, torch.Tensor):
            values = values[list(places)]
        elif values is not None:
            values = [values[place] for place in places]
        fields[field.name] = values
    return Scenes(**fields)


@torch.no_grad()
def measure(base: DemoBase, unseen: Scenes) -> list[float]:
    """Mean losses with the right reference, another's and none, at evenly spread timesteps, with the same noise always.

    Another's reference is half the list away.
    """
    count, losses = len(unseen), []
    for start in range(0, count, _TOGETHER):
        numbers = torch.arange(start, min(start + _TOGETHER, count))
        others = (numbers + count // 2) % count
        latents, own, their = (
            tensor[chosen].float()
            for tensor, chosen in ((unseen.latents, numbers), (unseen.references, numbers), (unseen.references, others))
        )
        base.captions = [unseen.captions[number] for number in numbers]
        _, noise, reference_noise = sample_noise(numbers.tolist(), latents.shape[1:], len(base.sigmas), 0)
        timesteps = ((numbers + 0.5) / count * len(base.sigmas)).long()
        prompts = base.encode_prompts(base.captions)
        caches: list[Any] = [*(base.cache(references, reference_noise) for references in (own, their)), None]
        losses.append(
            torch.stack([loss_at(base, latents, timesteps, noise, prompts, cache) for cache in caches], dim=1)
        )
    return torch.cat(losses).double().mean(0).tolist()
