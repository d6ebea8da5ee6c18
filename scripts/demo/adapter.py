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

from dreamcache_core.processes import Processes
from dreamcache_core.triplets import EMPTY_PROMPT_PROBABILITY

from .loop import ALONE, PRECISION, on_device
from .scenes import Scenes

STEPS = 1_500
ABLATION_STEPS = 600
TIMESTEP_BIAS = 1.0


@dataclass(frozen=True)
class Variant:
    """An adapter as the paper's ablations vary it. `stages`: of the U-Net that it sits in. `timestep`: of the caching
    pass. `caption`: whether that pass has the scene's caption for its prompt, and not an empty one. `sums`: whether
    what is read is added to the self-attention, and not concatenated with it.
    """

    name: str = "as it ships"
    stages: Sequence[str] = ("middle", "decoder")
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
    """What of the pack the training takes, as ComfyUI imports it: its `core`, and its modules of these names."""

    core: Any
    patching: Any
    frozen_base: Any

    def settings(self, steps: int) -> Any:
        """The network is much smaller than the paper's, so it learns at a higher rate, and must from fewer samples."""
        return self.core.TrainingSettings(
            steps, batch=16, learning_rate=2e-3, warm_up=100, cosine=True, ema=0.998, timestep_bias=TIMESTEP_BIAS
        )

    def untrained(self, networks: Any, variant: Variant) -> Any:
        adapter = self.core.untrained_adapter(self.patching.structure_of(networks.model), 0, variant.stages)
        if not variant.sums:
            return adapter
        summed = self.core.Adapter(adapter.layers, adapter.base_model, layer_type=_summed(self.core.AdapterLayer))
        summed.load_state_dict(adapter.state_dict(), strict=False)
        for layer in summed.layers:
            for parameter in summed[layer.name].to_out.parameters():
                torch.nn.init.zeros_(parameter)
        return summed

    def base_of(self, networks: Any, adapter: Any, variant: Variant) -> Any:
        """What an adapter is trained on, not loaded yet."""
        kind = _demo_base(self.frozen_base.ComfyUIBase, variant)
        return kind(networks.model, networks.vae, networks.clip, adapter, PRECISION)

    def run(
        self,
        networks: Any,
        scenes: Scenes,
        folder: Path,
        steps: int,
        variant: Variant,
        processes: Processes = ALONE,
    ) -> Any:
        """Train an adapter on scenes. Returns the trainer; stopped and started again, it goes on."""
        settings, adapter = self.settings(steps), self.untrained(networks, variant)
        base = self.base_of(networks, adapter, variant)
        base.load()
        trainer = self.core.Trainer(base, adapter, settings, processes.average)
        done = self.core.resume(trainer, folder)
        batches = self._batches(base, scenes, settings, done, processes)
        processes.say(f"{variant.name}: {adapter.parameter_count:,} parameters, from step {done} to {steps}")
        losses, started = [], time.monotonic()
        for progress in self.core.run(trainer, batches, folder, every=250, save=processes.is_main):
            losses.append(progress.loss)
            if progress.step % 100 == 0:
                seconds = (time.monotonic() - started) / len(losses)
                processes.say(f"step {progress.step}: loss {np.mean(losses):.4f}, {seconds:.3f} s a step")
                losses, started = [], time.monotonic()
        return trainer

    @torch.no_grad()
    def loss(self, networks: Any, scenes: Scenes, adapter: Any, variant: Variant = AS_IT_SHIPS) -> float:
        """Of the trainer, the mean over scenes: always at the same timesteps, with the same noise."""
        base = self.base_of(networks, adapter, variant)
        base.load()
        losses = []
        for start in range(0, len(scenes), 64):
            part = slice(start, start + 64)
            base.captions = scenes.captions[part]
            latents, references = scenes.latents[part].float(), scenes.references[part].float()
            batch = self.core.Batch(range(len(scenes))[part], latents, references, base.captions)
            losses.append(self.core.denoising_loss(base, batch, self.settings(0)))
        return float(torch.cat(losses).mean())

    def _batches(
        self, base: Any, scenes: Scenes, settings: Any, first_step: int, processes: Processes
    ) -> Iterator[list[Any]]:
        for number in itertools.count(first_step * processes.count + processes.index, processes.count):
            random = np.random.default_rng([5, settings.seed, number])
            chosen = random.integers(len(scenes), size=settings.batch)
            captions = [scenes.captions[scene] for scene in chosen]
            empty = random.random(settings.batch) < EMPTY_PROMPT_PROBABILITY
            base.captions = captions
            yield [
                self.core.Batch(
                    numbers=range(number * settings.batch, (number + 1) * settings.batch),
                    targets=scenes.latents[on_device(chosen)].float(),
                    references=scenes.references[on_device(chosen)].float(),
                    prompts=["" if none else caption for caption, none in zip(captions, empty, strict=True)],
                )
            ]


def _demo_base(comfyui_base: type, variant: Variant) -> type:
    """A frozen base that takes latents for pictures, since those of scenes are known, and varies the caching pass."""

    class DemoBase(comfyui_base):
        captions: Sequence[str] = ()
        """Of the scenes that the next references belong to."""
        timestep = variant.timestep

        def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
            return images

        def cache(self, latents: torch.Tensor, noise: torch.Tensor) -> Any:
            if variant.caption:
                self._empty_prompt = self.encode_prompts(self.captions)
            return super().cache(latents, noise)

    return DemoBase


def _summed(adapter_layer: type) -> type:
    class SummedLayer(adapter_layer):
        """x + SelfAttn + CrossAttn, in place of the Linear of both."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            del self.linear_cat

        def forward(self, x: Any, self_attention: Any, key: Any, value: Any, attention: Any = None) -> torch.Tensor:
            return self.to_out(self._attend(x, key, value, attention))

    return SummedLayer
