"""U-Net and adapter together on a GPU, and then the adapter alone.

A GPU is so quick that scenes must be drawn by all other cores meanwhile. Each goes on from what it is given, in
large batches, until its time is over.
"""

from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dreamcache.dreamcache_core.training.triplets import EMPTY_PROMPT_PROBABILITY
from safetensors.torch import save_file
from torch import nn

from . import joint
from .adapter import DemoBase
from .artwork import trained_subjects
from .base import NO_PROMPT
from .loop import DEVICE, as_tensor
from .scenes import draw_scenes
from .world import BACKGROUNDS, caption

BATCH = 1_536
BASE_RATE, ADAPTER_RATE = 1.5e-3, 3e-3
_BLOCK = 128
"""Scenes that are drawn, and encoded, together."""
FIRST = 4_096
"""Scenes that must be there to begin with."""
_MOST = 200_000
_SAVED_EVERY = 20.0
_HALF = 12 * 2**20
"""Bytes of a file; larger ones may not come back from where the GPU is."""


def start_drawing(workers: int) -> Any:
    """Processes that draw scenes without end, into a queue. To be called before the GPU is touched."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue(2 * workers)
    for worker in range(workers):
        context.Process(target=_draw, args=(queue, worker), daemon=True).start()
    return queue


def _draw(queue: Any, worker: int) -> None:
    torch.set_num_threads(1)
    drawn = trained_subjects()
    for block in itertools.count():
        scenes, references = draw_scenes(drawn, [14, worker, block], _BLOCK)
        images = np.stack([scene.image for scene in scenes])
        queue.put((images, np.stack(references), [scene.caption for scene in scenes]))


@dataclass(frozen=True, eq=False)
class Clock:
    """Times of the end of each part, in seconds of `time.monotonic`."""

    started: float
    base: float
    adapter: float

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.started:6.1f} s: {what}", flush=True)


class Pool:
    """All scenes that were drawn so far, encoded, on the GPU."""

    def __init__(self, queue: Any, encode: Callable[[torch.Tensor], torch.Tensor], contexts: torch.Tensor) -> None:
        """`encode`: pictures (batch, 3, 128, 128), 0…1, to latents as the U-Net reads them. `contexts`: of all captions
        in the order of `all_captions`, and last of the empty one.
        """
        self._queue, self._encode, self._contexts = queue, encode, contexts
        self._numbers = {words: number for number, words in enumerate(all_captions())}
        self._latents, self._references = (
            torch.empty(_MOST, 4, 16, 16, dtype=torch.float16, device=DEVICE) for _ in range(2)
        )
        self._captions = torch.empty(_MOST, dtype=torch.long, device=DEVICE)
        self.count = 0

    @torch.no_grad()
    def fill(self, wait: bool = False) -> None:
        """Take a block of scenes, if there is one."""
        if self.count + _BLOCK > _MOST or (self._queue.empty() and not wait):
            return
        images, references, captions = self._queue.get()
        place = slice(self.count, self.count + len(images))
        self._latents[place] = self._encode(as_tensor(images)).half()
        self._references[place] = self._encode(as_tensor(references)).half()
        self._captions[place] = torch.tensor([self._numbers[words] for words in captions], device=DEVICE)
        self.count += len(images)

    def draw(self, batch: int, no_prompt: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, references and contexts of some."""
        chosen = torch.randint(self.count, (batch,), device=DEVICE)
        captions = self._captions[chosen]
        captions[torch.rand(batch, device=DEVICE) < no_prompt] = len(self._contexts) - 1
        return self._latents[chosen].float(), self._references[chosen].float(), self._contexts[captions]


@torch.no_grad()
def contexts_of(base: DemoBase, captions: list[str]) -> torch.Tensor:
    """What the U-Net reads of each caption, (captions, tokens, channels), all as long as the longest."""
    # Of a thousand at once, for ComfyUI goes through them one by one.
    parts = [base.encode_prompts(captions[start : start + 1000]).context for start in range(0, len(captions), 1000)]
    tokens = math.lcm(*(part.shape[1] for part in parts))
    return torch.cat([part.repeat(1, tokens // part.shape[1], 1) for part in parts]).to(DEVICE)


def all_captions() -> list[str]:
    names = sorted({subject.name for subject in trained_subjects()})
    return [caption(name, background) for name in names for background in BACKGROUNDS]


def train_together(base: DemoBase, adapter: nn.Module, pool: Pool, clock: Clock, output: Path) -> int:
    """Train U-Net and adapter in place, as the step `joint` does. Returns the number of steps."""

    def loss_of_step() -> torch.Tensor:
        latents, references, context = pool.draw(BATCH, NO_PROMPT)
        read = None if random.random() < joint.NO_REFERENCE else references
        return joint.loss(base, latents, read, context, *_draws(latents))

    def save(averaged: nn.Module) -> None:
        half = {name: tensor.half().cpu().contiguous() for name, tensor in averaged.state_dict().items()}
        for number, part in enumerate(_parts(half)):
            save_file(part, output / f"joint_{number}.safetensors")

    network = nn.ModuleDict({"unet": base.unet, "adapter": adapter})
    return _train(network, loss_of_step, save, pool, clock, clock.base, BASE_RATE)


def train_adapter(base: DemoBase, adapter: nn.Module, pool: Pool, clock: Clock, output: Path) -> int:
    """Train an adapter in place, with the loss that the project's trainer has. Returns the number of steps."""

    def loss_of_step() -> torch.Tensor:
        latents, references, context = pool.draw(BATCH, EMPTY_PROMPT_PROBABILITY)
        return joint.loss(base, latents, references, context, *_draws(latents))

    def save(averaged: nn.Module) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in averaged.state_dict().items()}
        save_file(tensors, output / "adapter.safetensors")

    return _train(adapter, loss_of_step, save, pool, clock, clock.adapter, ADAPTER_RATE)


def _draws(latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is random of a batch, drawn by the GPU."""
    return torch.rand(len(latents), device=DEVICE), torch.randn_like(latents), torch.randn_like(latents)


def _train(
    network: nn.Module,
    loss_of_step: Callable[[], torch.Tensor],
    save: Callable[[nn.Module], None],
    pool: Pool,
    clock: Clock,
    end: float,
    learning_rate: float,
) -> int:
    """Train in place until `end`; the rate rises and falls with time. Its weights end as their averages.

    Returns the number of steps.
    """
    parameters: list[torch.Tensor] = list(network.requires_grad_().parameters())
    averaged = copy.deepcopy(network).requires_grad_(False)
    averages: list[torch.Tensor] = list(averaged.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    begun = saved = time.monotonic()
    losses: list[torch.Tensor] = []
    for step in itertools.count(1):
        now = time.monotonic()
        if now >= end:
            break
        done = (now - begun) / max(end - begun, 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / 50) * (1 + math.cos(math.pi * done)) / 2
        pool.fill()
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, parameters, 1 - min(0.99, step / (step + 10)))
        losses.append(loss.detach())
        if step % 25 == 0 or step <= 2:
            mean, rate = float(torch.stack(losses).mean()), BATCH * step / (time.monotonic() - begun)
            clock.say(f"step {step}, loss {mean:.4f}, {rate:.0f} samples/s, {pool.count} scenes")
            losses = []
        if time.monotonic() - saved > _SAVED_EVERY:
            save(averaged)
            saved = time.monotonic()
    save(averaged)
    clock.say(f"{step - 1} steps of {BATCH}")
    network.requires_grad_(False).load_state_dict(averaged.state_dict())
    return step - 1


def _parts(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(each.nbytes for each in part.values()) + tensor.nbytes > _HALF:
            yield part
            part = {}
        part[name] = tensor
    yield part


def workers() -> int:
    """All cores but the one that tells the GPU what to do, and one for what the others need."""
    return max(1, (os.cpu_count() or 1) - 2)
