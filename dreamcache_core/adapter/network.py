"""The adapter: one small trained module per cached layer, and the only weights that DreamCache adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import DreamCacheError
from ..unet import DEFAULT_STAGES, Stage, TransformerLayer, UNetStructure, select_layers
from .provenance import Provenance

# (query, key, value, heads, bias) → output. All are (batch, tokens, channels), but for the bias, which is added to the
# logits: (batch, 1, key tokens), or None.
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor | None], torch.Tensor]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multi-head attention over (batch, tokens, channels)."""
    query, key, value = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    mask = None if bias is None else bias.unsqueeze(1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


class AdapterLayer(nn.Module):
    """The adapter of one transformer layer (paper, section 3.3):

        Linear(concat[SelfAttn(norm1(x)), CrossAttn(query: norm_mem(x), key and value: cached features)])

    replaces SelfAttn(norm1(x)). 6·c² + 4·c parameters for c channels.
    `operations`: a module with `Linear` and `LayerNorm`; torch.nn, or a host's that casts and offloads weights.
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

    def keys_values(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of the references' tokens, each (rows, tokens, channels). They are the same at every step."""
        return self.to_k(tokens), self.to_v(tokens)

    def forward(
        self,
        x: torch.Tensor,
        self_attention: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attention = attend,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The change to add to `self_attention`, (batch, tokens, channels).

        `x`: the block's image tokens, (batch, tokens, channels). `self_attention`: the frozen block's, the same shape.
        `key`, `value`: (rows, cached tokens, channels). One row serves the whole batch. Several rows serve one latent
        each: the batch then has whole multiples of them, and latent n of each multiple attends to row n. `bias`: added
        to the attention logits, (rows, 1, cached tokens).
        """
        attended = self.to_out(self._attend(x, key, value, attention, bias))
        return self.linear_cat(torch.cat([self_attention, attended], dim=-1)) - self_attention

    def _attend(
        self,
        x: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attention,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        # Queries of the same row are put side by side, so that its keys and values are not copied for each of them.
        query = self.to_q(self.norm_mem(x)).unflatten(0, (-1, len(key))).transpose(0, 1)
        attended = attention(query.flatten(1, 2), key, value, self.heads, bias)
        return attended.unflatten(1, query.shape[1:3]).transpose(0, 1).flatten(0, 1)


def weight_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of an AdapterLayer's weights, without making one."""
    return {
        "norm_mem.weight": (channels,),
        "norm_mem.bias": (channels,),
        **{f"{name}.weight": (channels, channels) for name in ("to_q", "to_k", "to_v", "to_out")},
        "to_out.bias": (channels,),
        "linear_cat.weight": (channels, 2 * channels),
        "linear_cat.bias": (channels,),
    }


class Adapter(nn.Module):
    """The adapter of one base model. State keys read `output_blocks.4.1.to_q.weight`.

    `layers`: the layers it sits on. `base_model`: the family it was trained for, such as `SD1.x`. `provenance`: its
    trainings in order, as far as they are known. `layer_type`: the class of its layers.
    """

    def __init__(
        self,
        layers: Sequence[TransformerLayer],
        base_model: str,
        operations: Any = nn,
        provenance: Sequence[Provenance] = (),
        layer_type: type[AdapterLayer] = AdapterLayer,
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
            parent.add_module(leaf, layer_type(layer, operations))

    def __getitem__(self, layer: str) -> AdapterLayer:
        return self.get_submodule(layer)  # type: ignore[return-value]

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def check_fits(self, structure: UNetStructure) -> None:
        """Raise DreamCacheError unless the U-Net has every layer of the adapter, with the same width and heads."""
        missing = [layer.name for layer in self.layers if layer not in structure.layers]
        if missing and self.base_model == structure.base_model:
            raise DreamCacheError(
                f"The adapter needs layers that this {self.base_model} model lacks ({', '.join(missing)}), as "
                "distilled models do: load an adapter trained for this model, or the model it was distilled from."
            )
        if missing:
            raise DreamCacheError(
                f"The adapter was trained for {self.base_model}, but the model is {structure.base_model}: load an "
                f"adapter for {structure.base_model} or a model of {self.base_model}."
            )


def untrained_adapter(structure: UNetStructure, seed: int, stages: Sequence[Stage] = DEFAULT_STAGES) -> Adapter:
    """The adapter that training starts from, float32 on the CPU. It changes nothing: its Linear passes the
    self-attention on and ignores the reference, so that training starts at the base model's loss.
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
