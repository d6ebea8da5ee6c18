"""The adapter: one small trained module per cached layer, and the only weights that DreamCache adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .errors import DreamCacheError
from .layers import DEFAULT_STAGES, Stage, TransformerLayer, UNetStructure, select_layers
from .provenance import Provenance

# (query, key, value, heads) → attended, all (batch, tokens, channels).
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Multi-head attention over (batch, tokens, channels)."""
    split = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class AdapterLayer(nn.Module):
    """The adapter of one transformer layer (paper, section 3.3):

        Linear(concat[SelfAttn(norm1(x)), CrossAttn(query: norm_mem(x), key and value: cached features)])

    which stands in for SelfAttn(norm1(x)). 6·c² + 4·c parameters for c channels.
    `operations` gives Linear and LayerNorm: torch.nn's, or those of a host that casts and offloads weights.
    """

    def __init__(self, layer: TransformerLayer, operations: Any = nn) -> None:
        super().__init__()
        channels = layer.channels
        self.heads = layer.heads
        self.norm_mem = operations.LayerNorm(channels)
        self.to_q = operations.Linear(channels, channels, bias=False)
        self.to_k = operations.Linear(channels, channels, bias=False)
        self.to_v = operations.Linear(channels, channels, bias=False)
        self.to_out = operations.Linear(channels, channels)
        self.linear_cat = operations.Linear(2 * channels, channels)

    def keys_values(self, cached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of cached features, each of the same shape as they; the same at every step."""
        return self.to_k(cached), self.to_v(cached)

    def forward(
        self,
        x: torch.Tensor,
        self_attention: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attention = attend,
    ) -> torch.Tensor:
        """What stands in for `self_attention`.

        `x`: the block's token input, (batch, tokens, channels). `self_attention`: of the frozen block, the same shape.
        `key`, `value`: (references, cached tokens, channels). One is shared by the batch; of several, each is read by
        the part of the batch that has its number, in every `references` parts anew.
        """
        query = self.to_q(self.norm_mem(x))
        cross_attention = attention(query, _over_batch(key, len(x)), _over_batch(value, len(x)), self.heads)
        return self.linear_cat(torch.cat([self_attention, self.to_out(cross_attention)], dim=-1))


def weight_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """What an AdapterLayer's weights are called and how large they are, told without making one."""
    return {
        "norm_mem.weight": (channels,),
        "norm_mem.bias": (channels,),
        **{f"{name}.weight": (channels, channels) for name in ("to_q", "to_k", "to_v", "to_out")},
        "to_out.bias": (channels,),
        "linear_cat.weight": (channels, 2 * channels),
        "linear_cat.bias": (channels,),
    }


def _over_batch(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat (references, tokens, channels) until it is (batch, tokens, channels). One reference isn't copied."""
    return tensor.expand(batch // len(tensor), *tensor.shape).flatten(0, 1)


class Adapter(nn.Module):
    """The adapter of one base model. State keys read `output_blocks.4.1.to_q.weight`.

    `layers`: the layers it sits on. `base_model`: the family it was trained for, in words, as UNetStructure has it.
    `provenance`: its trainings, one after the other, as far as they are known.
    """

    def __init__(
        self,
        layers: Sequence[TransformerLayer],
        base_model: str,
        operations: Any = nn,
        provenance: Sequence[Provenance] = (),
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.base_model = base_model
        self.provenance = tuple(provenance)
        for layer in self.layers:
            *parents, leaf = layer.name.split(".")
            parent: nn.Module = self
            for name in parents:
                if not hasattr(parent, name):
                    parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            parent.add_module(leaf, AdapterLayer(layer, operations))

    def __getitem__(self, layer: str) -> AdapterLayer:
        return self.get_submodule(layer)  # type: ignore[return-value]

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def with_operations(self, operations: Any) -> Adapter:
        """An adapter of the same weights, the very tensors, whose layers are a host's, without gradients."""
        # On the meta device, because the weights are there: nothing is drawn at random only to be replaced.
        with torch.device("meta"):
            adapter = Adapter(self.layers, self.base_model, operations, self.provenance)
        adapter.load_state_dict(self.state_dict(), assign=True)
        return adapter.requires_grad_(False).eval()

    def check_fits(self, structure: UNetStructure) -> None:
        """Raise DreamCacheError unless every layer of the adapter is in this U-Net, with the same width and heads."""
        if not set(self.layers) <= set(structure.layers):
            raise DreamCacheError(
                f"The adapter was trained for {self.base_model} and the model is {structure.base_model}: load an "
                f"adapter for {structure.base_model}, or a model of {self.base_model}."
            )


def untrained_adapter(structure: UNetStructure, seed: int, stages: Sequence[Stage] = DEFAULT_STAGES) -> Adapter:
    """The adapter that training begins with, in float32 on the CPU. It changes nothing yet, so training starts at the
    loss of the base model: Linear passes the self-attention on and leaves out what is read of the reference.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = Adapter(select_layers(structure.layers, stages), structure.base_model)
    for layer in adapter.layers:
        linear = adapter[layer.name].linear_cat
        with torch.no_grad():
            linear.weight.copy_(torch.eye(layer.channels, 2 * layer.channels))
            linear.bias.zero_()
    return adapter
