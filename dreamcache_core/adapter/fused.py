"""The fused form of an adapter: the same change with fewer operations, for sampling only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..unet import TransformerLayer
from .network import Adapter, AdapterLayer, Attention, attend


def fuse(adapter: Adapter, operations: Any = nn) -> Adapter:
    """The fused form of `adapter`. It can't be trained, nor saved as an adapter.

    `operations`: a module with `Linear` and `LayerNorm`; torch.nn, or a host's that casts and offloads weights.
    """
    # On the meta device, because the weights exist: nothing is initialised only to be replaced.
    with torch.device("meta"):
        fused = Adapter(adapter.layers, adapter.base_model, operations, adapter.provenance, FusedLayer)
    weights = {
        f"{layer.name}.{name}": tensor
        for layer in adapter.layers
        for name, tensor in _fused_weights(adapter[layer.name]).items()
    }
    fused.load_state_dict(weights, assign=True)
    return fused.requires_grad_(False).eval()


class FusedLayer(AdapterLayer):
    """An AdapterLayer whose consecutive matrices are multiplied into one. With Linear's weight [A B] and bias b, the
    change is

        (A - 1)·SelfAttn + (B·W_out)·CrossAttn + B·b_out + b

    It takes c² multiplications less per token and has 5·c² + 3·c weights for c channels.
    """

    def __init__(self, layer: TransformerLayer, operations: Any = nn) -> None:
        super().__init__(layer, operations)
        del self.to_out

    def forward(
        self,
        x: torch.Tensor,
        self_attention: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attention = attend,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The change to add to `self_attention`, (batch, tokens, channels); arguments as of AdapterLayer."""
        attended = self._attend(x, key, value, attention, bias)
        return self.linear_cat(torch.cat([self_attention, attended], dim=-1))


@torch.no_grad()
def _fused_weights(layer: AdapterLayer) -> dict[str, torch.Tensor]:
    """The weights of a FusedLayer; those that both layers have are shared, not copied."""
    weights = layer.state_dict()
    linear, channels = weights["linear_cat.weight"], weights["to_q.weight"].shape[0]
    # float8 has too few digits for sums of products.
    dtype = linear.dtype if linear.dtype.itemsize > 1 else torch.float16
    for_self, for_attended = linear.float().split(channels, dim=1)
    identity = torch.eye(channels, device=linear.device)
    weight = torch.cat([for_self - identity, for_attended @ weights.pop("to_out.weight").float()], dim=1)
    bias = weights["linear_cat.bias"].float() + for_attended @ weights.pop("to_out.bias").float()
    return {**weights, "linear_cat.weight": weight.to(dtype), "linear_cat.bias": bias.to(dtype)}
