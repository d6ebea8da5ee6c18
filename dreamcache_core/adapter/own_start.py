"""A start that already looks: the weights of a new adapter, taken from the model's own attention.

The frozen block reads `Q(norm1 x)`, `K(norm1 r)` and `V(norm1 r)` of tokens r that have passed the transformer's norm
and proj_in. An adapter reads raw cached features f. Its query and to_out are the block's; its key and value are the
linear maps of f that come nearest to K and V by least squares. Linear still passes the self-attention on alone, so the
first step has the base model's loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .network import Adapter, AdapterLayer

# Added to the diagonal, as a fraction of its mean: few pictures may leave directions without a value.
_RIDGE = 1e-4


class _LinearFit:
    """Least squares of outputs on inputs with an intercept, in float64, from one batch after another."""

    def __init__(self) -> None:
        self._products: torch.Tensor | float = 0.0
        self._targets: torch.Tensor | float = 0.0

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """`inputs`: (rows, channels). `outputs`: (rows, values)."""
        rows = torch.nn.functional.pad(inputs.double(), (0, 1), value=1.0)
        self._products = self._products + rows.T @ rows
        self._targets = self._targets + rows.T @ outputs.double()

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight, (values, channels), and the intercept, (values,)."""
        products, targets = torch.as_tensor(self._products), torch.as_tensor(self._targets)
        ridge = _RIDGE * products.diagonal()[:-1].mean() * torch.eye(len(products), device=products.device).double()
        ridge[-1, -1] = 0.0
        solution = torch.linalg.solve(products + ridge, targets).T
        return solution[:, :-1], solution[:, -1]


@dataclass(frozen=True, eq=False)
class FrozenTokens:
    """What a frozen transformer makes of cached features. All are (pictures, tokens, channels).

    `features`: raw, as they are cached. `key`, `value`: those of its first block.
    """

    features: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@torch.no_grad()
def begin_with_own_attention(
    adapter: Adapter, blocks: Mapping[str, Any], pictures: Iterable[Mapping[str, FrozenTokens]]
) -> None:
    """Give an untrained adapter weights with which it attends as the frozen blocks do.

    `blocks`: the first transformer block of each adapted layer, with `norm1` and `attn1`, by the layer's name.
    `pictures`: of each layer, one batch of pictures after another; a few dozen pictures are enough.
    """
    fits = {layer.name: _LinearFit() for layer in adapter.layers}
    for batch in pictures:
        for name, fit in fits.items():
            tokens = batch[name]
            outputs = torch.cat([tokens.key, tokens.value], dim=-1)
            fit.add(tokens.features.flatten(0, 1), outputs.flatten(0, 1))
    for name, fit in fits.items():
        _begin(adapter[name], blocks[name], *fit.solve())


def _begin(layer: AdapterLayer, block: Any, weight: torch.Tensor, intercept: torch.Tensor) -> None:
    own, (key, value) = block.attn1, weight.chunk(2)
    layer.norm_mem.load_state_dict({"weight": block.norm1.weight, "bias": block.norm1.bias})
    layer.to_q.weight.copy_(own.to_q.weight)
    layer.to_k.weight.copy_(key)
    layer.to_v.weight.copy_(value)
    layer.to_out.weight.copy_(own.to_out[0].weight)
    # Attention weights add up to 1: they pass the value's intercept on unchanged, and the key's changes none of them.
    layer.to_out.bias.copy_(own.to_out[0].bias + own.to_out[0].weight.double() @ intercept.chunk(2)[1])
