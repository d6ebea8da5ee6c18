"""The demo model's adapter, trained by the project's own trainer on triplets of scene, caption and reference."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter, AdapterLayer, attend, untrained_adapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.training.loss import Batch, denoising_loss
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.processes import Processes
from dreamcache.dreamcache_core.training.session import UNTRAINED, Origin, TrainingSession
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.dreamcache_core.training.triplets import EMPTY_PROMPT_PROBABILITY
from dreamcache.dreamcache_core.unet import Stage
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.demo_network import DemoNetworks
from dreamcache.nodes.host.frozen_base import ComfyUIBase

from .loop import ALONE, PRECISION, on_device
from .scenes import Scenes
from .world import SIZE

STEPS = 1_500
ABLATION_STEPS = 400
TIMESTEP_BIAS = 1.0


@dataclass(frozen=True)
class Variant:
    """An adapter as the paper's ablations vary it. `stages`: of the U-Net that it sits in. `timestep`: of the caching
    pass. `caption`: whether that pass has the scene's caption for its prompt, and not an empty one. `sums`: whether
    what is read is added to the self-attention, and not concatenated with it.
    """

    name: str = "as it ships"
    stages: Sequence[Stage] = ("middle", "decoder")
    timestep: int = 1
    caption: bool = False
    sums: bool = False


AS_IT_SHIPS = Variant()
# What the paper varies.
VARIANTS = (
    AS_IT_SHIPS,
    Variant("timestep 150", timestep=150),
    Variant("timestep 300", timestep=300),
    Variant("the caption as prompt", caption=True),
    Variant("sum in place of concatenation", sums=True),
    Variant("encoder", stages=("encoder",)),
    Variant("middle", stages=("middle",)),
    Variant("encoder and middle", stages=("encoder", "middle")),
    Variant("decoder", stages=("decoder",)),
    Variant("all", stages=("encoder", "middle", "decoder")),
)


@dataclass(frozen=True, eq=False)
class Training:
    """Trains adapters on a demo model."""

    networks: DemoNetworks

    @staticmethod
    def settings(steps: int, seed: int = 0) -> TrainingSettings:
        """The network is much smaller than the paper's, so it learns at a higher rate, and must from fewer samples."""
        return TrainingSettings(
            steps,
            batch=16,
            learning_rate=2e-3,
            warm_up=100,
            cosine=True,
            ema=0.998,
            seed=seed,
            timestep_bias=TIMESTEP_BIAS,
        )

    def untrained(self, variant: Variant, seed: int = 0) -> Adapter:
        adapter = untrained_adapter(structure_of(self.networks.model), seed, variant.stages)
        if not variant.sums:
            return adapter
        summed = Adapter(adapter.layers, adapter.base_model, layer_type=_SummedLayer)
        summed.load_state_dict(adapter.state_dict(), strict=False)
        for layer in summed.layers:
            for parameter in summed[layer.name].to_out.parameters():
                torch.nn.init.zeros_(parameter)
        return summed

    def base_of(self, adapter: Adapter, variant: Variant) -> DemoBase:
        """What an adapter is trained on, not loaded yet."""
        return DemoBase(self.networks, adapter, variant)

    def run(
        self,
        scenes: Scenes,
        folder: Path,
        steps: int,
        variant: Variant,
        processes: Processes = ALONE,
        seed: int = 0,
    ) -> Trainer:
        """Train an adapter on scenes. Returns the trainer; stopped and started again, it goes on."""
        settings, adapter = self.settings(steps, seed), self.untrained(variant, seed)
        base = self.base_of(adapter, variant)
        base.load()
        trainer = Trainer(base, adapter, settings, processes.average)
        session = TrainingSession(
            trainer,
            TrainingFolder(folder),
            Origin(base.weights_hash, UNTRAINED, "scenes", settings.batch, SIZE, settings.seed),
            triplets=len(scenes),
            checkpoint_every=250,
            processes=processes,
        )
        batches = self.batches(base, scenes, settings, session.step, processes)
        processes.say(f"{variant.name}: {adapter.parameter_count:,} parameters, from step {session.step} to {steps}")
        losses, started = [], time.monotonic()
        for progress in session.run(batches):
            losses.append(progress.loss)
            if progress.step % 100 == 0:
                seconds = (time.monotonic() - started) / len(losses)
                processes.say(f"step {progress.step}: loss {np.mean(losses):.4f}, {seconds:.3f} s a step")
                losses, started = [], time.monotonic()
        return trainer

    @torch.no_grad()
    def loss(self, scenes: Scenes, adapter: Adapter, variant: Variant = AS_IT_SHIPS) -> float:
        """Of the trainer, the mean over scenes: always at the same timesteps, with the same noise."""
        base = self.base_of(adapter, variant)
        base.load()
        losses = []
        for start in range(0, len(scenes), 64):
            part = slice(start, start + 64)
            base.captions = scenes.captions[part]
            latents, references = scenes.latents[part].float(), scenes.references[part].float()
            batch = Batch(range(len(scenes))[part], latents, references, base.captions)
            losses.append(denoising_loss(base, batch, self.settings(0)))
        return float(torch.cat(losses).mean())

    def batches(
        self,
        base: DemoBase,
        scenes: Scenes,
        settings: TrainingSettings,
        first_step: int = 0,
        processes: Processes = ALONE,
    ) -> Iterator[list[Batch]]:
        """The micro-batch of each step from `first_step` on, without end."""
        for number in itertools.count(first_step * processes.count + processes.index, processes.count):
            random = np.random.default_rng([5, settings.seed, number])
            chosen = random.integers(len(scenes), size=settings.batch)
            captions = [scenes.captions[scene] for scene in chosen]
            empty = random.random(settings.batch) < EMPTY_PROMPT_PROBABILITY
            base.captions = captions
            yield [
                Batch(
                    numbers=range(number * settings.batch, (number + 1) * settings.batch),
                    targets=scenes.latents[on_device(chosen)].float(),
                    references=scenes.references[on_device(chosen)].float(),
                    prompts=["" if none else caption for caption, none in zip(captions, empty, strict=True)],
                )
            ]


class DemoBase(ComfyUIBase):
    """A frozen base that takes latents for pictures, since those of scenes are known, and varies the caching pass."""

    captions: Sequence[str] = ()
    """Of the scenes that the next references belong to."""

    def __init__(self, networks: DemoNetworks, adapter: Adapter, variant: Variant) -> None:
        super().__init__(networks.model, networks.vae, networks.clip, adapter, PRECISION)
        self.timestep = variant.timestep
        self._caption = variant.caption

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        return images

    def cache(self, latents: torch.Tensor, noise: torch.Tensor, subjects: torch.Tensor | None = None) -> ReferenceCache:
        if self._caption:
            self._empty_prompt = self.encode_prompts(self.captions)
        return super().cache(latents, noise, subjects)


class _SummedLayer(AdapterLayer):
    """x + SelfAttn + CrossAttn, in place of the Linear of both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.linear_cat

    def forward(
        self, x: Any, self_attention: Any, key: Any, value: Any, attention: Any = attend, bias: Any = None
    ) -> torch.Tensor:
        return self.to_out(self._attend(x, key, value, attention, bias))
