"""Trainings of a miniature on noise, for tests of the trainer and of its sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.training.loss import Batch
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.session import UNTRAINED, Origin, TrainingSession
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from support.miniature import models

SETTINGS = TrainingSettings(steps=6, batch=4, learning_rate=1e-3, warm_up=2, ema=0.9, seed=3)
ORIGIN = Origin("0" * 64, UNTRAINED, "pictures", SETTINGS.batch, resolution=64, seed=SETTINGS.seed)


def new_adapter(structure: str = "sd15") -> Adapter:
    unet = structure_of(models.unet_patcher(structure))
    adapter = Adapter(select_layers(unet.layers), unet.base_model)
    adapter.load_state_dict(models.generated_weights(adapter, models.SEED))
    return adapter


def new_trainer(structure: str = "sd15", settings: TrainingSettings = SETTINGS, **how: Any) -> Trainer:
    adapter = new_adapter(structure)
    base = ComfyUIBase(models.unet_patcher(structure), models.vae(), models.clip(structure), adapter, **how)
    base.load()
    return Trainer(base, adapter, settings)


def base_of(trainer: Trainer) -> ComfyUIBase:
    assert isinstance(trainer.base, ComfyUIBase)
    return trainer.base


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.adapter.parameters()])


def pictures(numbers: Iterable[int], size: int = 64) -> torch.Tensor:
    """(batch, size, size, 3)"""
    noise = (torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(number)) for number in numbers)
    return torch.nn.functional.interpolate(torch.stack(list(noise)), size=size, mode="bilinear").movedim(1, -1)


def batch(step: int, size: int = 4, first: int = 0) -> Batch:
    numbers = range(step * size + first, (step + 1) * size)
    references = pictures(range(1000 + numbers.start, 1000 + numbers.stop))
    return Batch(numbers, pictures(numbers), references, [f"picture {number}" for number in numbers])


def batches(first_step: int = 0, last_step: int = SETTINGS.steps) -> Iterator[list[Batch]]:
    """Those of all steps after `first_step`, up to `last_step`."""
    return ([batch(step)] for step in range(first_step, last_step))


def open_session(
    trainer: Trainer, folder: Path, checkpoint_every: int, origin: Origin = ORIGIN, **how: Any
) -> TrainingSession:
    return TrainingSession(
        trainer, TrainingFolder(folder), origin, triplets=3, checkpoint_every=checkpoint_every, **how
    )


def train_to_the_end(folder: Path) -> None:
    """12 steps, each with a checkpoint and an adapter. Also in a process of its own, which may be killed."""
    session = open_session(new_trainer(settings=replace(SETTINGS, steps=12)), folder, 1, write_adapter=True)
    for _ in session.run(batches(session.step, 12)):
        pass
