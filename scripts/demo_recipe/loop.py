"""The training loop of everything in the recipe but the adapter, which the project's own trainer trains."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, save_checkpoint
from dreamcache.dreamcache_core.training.processes import Processes
from torch import nn

from .muon import Muon

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
"""Of activations. Many a CPU multiplies bfloat16 no quicker than float32."""
ALONE = Processes()


def adamw(network: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """For all weights."""
    return [_adamw(network.parameters(), learning_rate)]


def muon(network: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """For matrices and convolutions, and AdamW for the rest."""
    weights = list(network.parameters())
    matrices = [weight for weight in weights if weight.ndim > 1]
    return [Muon(matrices, learning_rate), _adamw([weight for weight in weights if weight.ndim < 2], learning_rate)]


def _adamw(weights: Iterable[torch.Tensor], learning_rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def train(
    network: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    falling: float = 0.2,
    ema: float = 0.999,
    every: int = 100,
    processes: Processes = ALONE,
    optimizers_of: Callable[[nn.Module, float], Sequence[torch.optim.Optimizer]] = adamw,
) -> nn.Module:
    """Train a network in place, on DEVICE, and give a copy of it with averaged weights.

    `loss_of_step` gets a number, from which all that is random must follow: of several processes that train together,
    each gets others. Stopped at any moment and started again, it goes on from the newest checkpoint in `folder`.
    """
    parameters: list[torch.Tensor] = list(network.to(DEVICE).requires_grad_().parameters())
    averaged = copy.deepcopy(network).requires_grad_(False).eval()
    averages: list[torch.Tensor] = list(averaged.parameters())
    optimizers = optimizers_of(network, learning_rate)
    state = load_checkpoint(folder, DEVICE)
    if state:
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        for optimizer, of_optimizer in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of_optimizer)
    first = state["step"] if state else 0
    processes.say(f"{folder.name}: {sum(map(torch.numel, parameters)):,} parameters, from step {first} to {steps}")

    sum_of_losses, started = 0.0, time.monotonic()
    for step in range(first, steps):
        # Rises over 100 steps and falls at the end, so that a longer training can go on from a shorter one.
        rate = learning_rate * min(1.0, (step + 1) / 100, (steps - step) / (falling * steps))
        loss = loss_of_step(step * processes.count + processes.index)
        network.zero_grad(set_to_none=True)
        loss.backward()
        if processes.count > 1:
            _average_gradients(parameters, processes)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, parameters, 1 - decay)
        sum_of_losses += float(loss.detach())
        done = step + 1
        if done % every == 0 or done == steps:
            count = every if done % every == 0 else done % every
            seconds = (time.monotonic() - started) / count
            processes.say(f"step {done} of {steps}: loss {sum_of_losses / count:.4f}, {seconds:.3f} s a step")
            if processes.is_main:
                save_checkpoint(
                    folder,
                    {
                        "step": done,
                        "network": network.state_dict(),
                        "averaged": averaged.state_dict(),
                        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    },
                )
            sum_of_losses, started = 0.0, time.monotonic()
    return averaged


def _average_gradients(parameters: list[torch.Tensor], processes: Processes) -> None:
    """Of all processes, at once; where one had no use for a parameter, its gradient is 0."""
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    averages = processes.average(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, average in zip(parameters, averages.split([one.numel() for one in parameters]), strict=True):
        parameter.grad = average.view_as(parameter)


def initialize(network: nn.Module, seed: int = 0) -> None:
    """Draw weights as PyTorch's layers do, which ComfyUI's, made for trained ones, leave out.

    The last layer of each residual branch begins at 0, so that a deep network begins as a shallow one.
    """
    torch.manual_seed(seed)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(("out_layers.3", "proj_out", "conv2", "to_out.0", "out.2")):
                nn.init.zeros_(module.weight)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(batch, height, width, channels) uint8 → (batch, channels, height, width) float32, 0…1, on DEVICE."""
    return on_device(pictures).movedim(-1, 1).float() / 255
