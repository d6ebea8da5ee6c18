"""Muon (K. Jordan, 2024): an optimiser that learns matrices from fewer samples than AdamW does."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_LIKE_ADAMW = 0.2
"""Root of the mean square of an update, as AdamW's usually are, so that both have the same learning rate."""


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; those of convolutions count as (outputs, all of an output)."""

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learned = [one for one in group["params"] if one.grad is not None]
            # Weights of one shape are orthogonalised together, which takes less time.
            for _, same in itertools.groupby(sorted(learned, key=lambda one: one.shape), lambda one: one.shape):
                self._step(list(same), **{name: group[name] for name in ("lr", "momentum", "weight_decay")})

    def _step(self, weights: list[torch.Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        gradients: list[Any] = [weight.grad for weight in weights]
        sums = [self.state[weight].setdefault("momentum", torch.zeros_like(weight)) for weight in weights]
        torch._foreach_lerp_(sums, gradients, 1 - momentum)
        # Nesterov's.
        ahead = torch.stack(torch._foreach_lerp(gradients, sums, momentum)).flatten(2)
        updates = orthogonalised(ahead) * (_LIKE_ADAMW * max(ahead.shape[1:]) ** 0.5)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, list(updates.view(-1, *weights[0].shape)), alpha=-lr)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Of matrices (…, rows, columns), about the nearest whose singular values are all 1, by Newton's and Schulz's
    iteration, whose polynomials are multiplied before the matrix is: they are square, and weights are wide.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT).mT
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    products = x @ x.mT
    identity = torch.eye(products.shape[-1], device=x.device)
    factor = identity
    for a, b, c in [_COEFFICIENTS] * _ITERATIONS:
        polynomial = a * identity + b * products + c * products @ products
        factor = polynomial @ factor
        products = polynomial @ products @ polynomial
    return factor @ x
