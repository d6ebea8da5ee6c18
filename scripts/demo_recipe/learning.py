"""How an adapter of the demo model learns: from which start, from how many subjects, over how many samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.training.loss import loss_at, sample_noise
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.nodes.host.frozen_base import FITTED_ON, begin_as_the_model

from .adapter import AS_IT_SHIPS, DemoBase, Training
from .loop import on_device
from .scenes import Scenes

SEEDS = (0, 1, 2)
SUBJECTS = (10, 100)
TOGETHER = 64


@dataclass(frozen=True)
class Measured:
    """Mean losses of unseen scenes after so many samples: with the right reference, another's, and none."""

    samples: int
    right: float
    other: float
    none: float

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


STARTS: dict[str, Start] = {"untouched": untouched, "own attention": own_attention}


def learn(training: Training, scenes: Scenes, unseen: Scenes, start: Start, seed: int, steps: int) -> list[Measured]:
    """Train an adapter, and measure it after a quarter, a half and all of the steps."""
    settings = replace(training.settings(steps), seed=seed)
    adapter = training.untrained(AS_IT_SHIPS, seed)
    base = training.base_of(adapter, AS_IT_SHIPS)
    base.load()
    start(base, adapter, scenes, seed)
    trainer, measured = Trainer(base, adapter, settings), []
    for progress in trainer.run(training.batches(base, scenes, settings)):
        if progress.step in (steps // 4, steps // 2, steps):
            with trainer.averaged_weights():
                measured.append(measure(base, unseen, progress.step * settings.batch))
    return measured


def of_subjects(scenes: Scenes, count: int) -> Scenes:
    """Those of `count` of the subjects, evenly chosen."""
    keys = sorted(set(scenes.subjects))
    kept = {keys[number * len(keys) // count] for number in range(count)}
    return choose(scenes, [place for place, subject in enumerate(scenes.subjects) if subject in kept])


def choose(scenes: Scenes, places: Sequence[int]) -> Scenes:
    """Some of the scenes, in this order."""
    fields = {}
    for field in dataclasses.fields(scenes):
        values = getattr(scenes, field.name)
        is_tensor = isinstance(values, torch.Tensor)
        fields[field.name] = values[list(places)] if is_tensor else [values[place] for place in places]
    return Scenes(**fields)


def print_learning(training: Training, scenes: Scenes, unseen: Scenes, steps: int) -> None:
    """Compare the starts with the same seeds, then the better of them with fewer subjects."""
    print("| start | subjects | seed | samples | right reference | another's | none | gap |\n" + "| --- " * 8 + "|")
    subjects = len(set(scenes.subjects))
    runs = [(name, subjects, seed) for seed in SEEDS for name in STARTS]
    runs += [("own attention", count, 0) for count in SUBJECTS]
    for name, count, seed in runs:
        for at in learn(training, of_subjects(scenes, count), unseen, STARTS[name], seed, steps):
            losses = f"{at.right:.4f} | {at.other:.4f} | {at.none:.4f} | {at.gap:.4f}"
            print(f"| {name} | {count} | {seed} | {at.samples:,} | {losses} |", flush=True)


@torch.no_grad()
def measure(base: DemoBase, unseen: Scenes, samples: int) -> Measured:
    """At evenly spread timesteps, always with the same noise. Another's reference is half the list away."""
    count, losses = len(unseen), []
    for start in range(0, count, TOGETHER):
        numbers = torch.arange(start, min(start + TOGETHER, count))
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
    right, other, none = torch.cat(losses).double().mean(0).tolist()
    return Measured(samples, right, other, none)
