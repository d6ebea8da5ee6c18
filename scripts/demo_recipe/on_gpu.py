"""U-Net and adapter together on a GPU, as the step `joint` trains them, in large batches, until the time is over."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from . import joint
from .adapter import DemoBase
from .alignment import Alignment
from .composer import Composer
from .loop import muon

REFERENCES = 768
"""Of a step, each for as many readers as in `joint`."""
LEARNING_RATE = 2e-3
_SAVED_EVERY = 20.0
_HALF = 12 * 2**20
"""Bytes of a file; larger ones may not come back from where the GPU is."""


def train_together(base: DemoBase, adapter: Adapter, composer: Composer, seconds: float, folder: Path) -> int:
    """Train U-Net and adapter in place, from what lies in `folder`, if it does, and keep them there.

    Returns the number of steps that they have had there.
    """
    contexts, alignment = joint.contexts_of(base), Alignment(adapter)
    network = nn.ModuleDict({"unet": base.unet, "adapter": adapter})
    first = _load(network, folder)
    say(f"from step {first}")

    def loss_of_step() -> torch.Tensor:
        return joint.loss_of_some(base, composer.draw(REFERENCES), contexts, alignment)

    return _train(network, loss_of_step, first, seconds, folder)


def _train(
    network: nn.Module, loss_of_step: Callable[[], torch.Tensor], first: int, seconds: float, folder: Path
) -> int:
    """Train in place; the rate rises and falls with time. Its weights end as their averages."""
    parameters: list[torch.Tensor] = list(network.requires_grad_().parameters())
    averaged = copy.deepcopy(network).requires_grad_(False)
    averages: list[torch.Tensor] = list(averaged.parameters())
    optimizers = muon(network, LEARNING_RATE)
    begun = saved = time.monotonic()
    losses: list[torch.Tensor] = []
    for step in itertools.count(1):
        done = (time.monotonic() - begun) / max(seconds, 1e-6)
        if done >= 1:
            break
        loss = loss_of_step()
        network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, step / 50) * (1 + math.cos(math.pi * done)) / 2
            optimizer.step()
        torch._foreach_lerp_(averages, parameters, 1 - min(0.99, step / (step + 10)))
        losses.append(loss.detach())
        if step % 25 == 0 or step <= 2:
            mean, rate = float(torch.stack(losses).mean()), REFERENCES * step / (time.monotonic() - begun)
            say(f"step {first + step}, loss {mean:.4f}, {rate:.0f} scenes a second")
            losses = []
        if time.monotonic() - saved > _SAVED_EVERY:
            _save(averaged, folder, first + step)
            saved = time.monotonic()
    network.requires_grad_(False).load_state_dict(averaged.state_dict())
    _save(network, folder, first + step - 1)
    say(f"{step - 1} steps of {REFERENCES} scenes")
    return first + step - 1


def say(what: str) -> None:
    print(f"{time.strftime('%X')}: {what}", flush=True)


def _save(network: nn.Module, folder: Path, steps: int) -> None:
    half = {name: tensor.half().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for number, part in enumerate(_parts(half)):
        save_file(part, folder / f"joint_{number}.safetensors", {"steps": str(steps)})


def _load(network: nn.Module, folder: Path) -> int:
    """What `_save` wrote. Returns its number of steps, 0 if it isn't there."""
    tensors: dict[str, torch.Tensor] = {}
    steps = 0
    for path in folder.glob("joint_*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
            steps = int(file.metadata()["steps"])
    if tensors:
        network.load_state_dict(tensors)
    return steps


def _parts(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(each.nbytes for each in part.values()) + tensor.nbytes > _HALF:
            yield part
            part = {}
        part[name] = tensor
    yield part
