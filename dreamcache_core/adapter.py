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
        """What is to be added to `self_attention`.

        `x`: the block's token input, (batch, tokens, channels). `self_attention`: of the frozen block, the same shape.
        `key`, `value`: (references, cached tokens, channels). One is shared by the batch; of several, each is read by
        the part of the batch that has its number, in every `references` parts anew.
        """
        read = self.to_out(self._attend(x, key, value, attention))
        return self.linear_cat(torch.cat([self_attention, read], dim=-1)) - self_attention

    def _attend(self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention) -> torch.Tensor:
        # Queries that read the same reference stand in a row, so that it isn't copied for each of them.
        query = self.to_q(self.norm_mem(x)).unflatten(0, (-1, len(key))).transpose(0, 1)
        read = attention(query.flatten(1, 2), key, value, self.heads)
        return read.unflatten(1, query.shape[1:3]).transpose(0, 1).flatten(0, 1)


class FoldedLayer(AdapterLayer):
    """An AdapterLayer for drawing, whose matrices that follow each other are one. With Linear's weight [A B],

        (A - 1)·SelfAttn + (B·W_out)·CrossAttn + B·b_out + b

    gives the same with c² multiplications less for each token, and 5·c² + 3·c weights.
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
    ) -> torch.Tensor:
        """As AdapterLayer's."""
        read = self._attend(x, key, value, attention)
        return self.linear_cat(torch.cat([self_attention, read], dim=-1))


@torch.no_grad()
def _fold(layer: AdapterLayer) -> dict[str, torch.Tensor]:
    """The weights of `layer` as a FoldedLayer's; the very tensors, where they are the same."""
    weights = layer.state_dict()
    linear, channels = weights["linear_cat.weight"], weights["to_q.weight"].shape[0]
    # Sums of products want more digits than float8 has.
    dtype = linear.dtype if linear.dtype.itemsize > 1 else torch.float16
    of_self, of_read = linear.float().split(channels, dim=1)
    identity = torch.eye(channels, device=linear.device)
    weight = torch.cat([of_self - identity, of_read @ weights.pop("to_out.weight").float()], dim=1)
    bias = weights["linear_cat.bias"].float() + of_read @ weights.pop("to_out.bias").float()
    return {**weights, "linear_cat.weight": weight.to(dtype), "linear_cat.bias": bias.to(dtype)}


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


class Adapter(nn.Module):
    """The adapter of one base model. State keys read `output_blocks.4.1.to_q.weight`.

    `layers`: the layers it sits on. `base_model`: the family it was trained for, in words, as UNetStructure has it.
    `provenance`: its trainings, one after the other, as far as they are known. `layer_type`: what its layers are.
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

    def folded(self, operations: Any = nn) -> Adapter:
        """An adapter for drawing that does the same with fewer operations (see FoldedLayer), whose layers are a host's.
        It can't be trained, nor saved as what it came from.
        """
        # On the meta device, because the weights are there: nothing is drawn at random only to be replaced.
        with torch.device("meta"):
            adapter = Adapter(self.layers, self.base_model, operations, self.provenance, FoldedLayer)
        folded = {f"{layer.name}.{name}": t for layer in self.layers for name, t in _fold(self[layer.name]).items()}
        adapter.load_state_dict(folded, assign=True)
        return adapter.requires_grad_(False).eval()

    def check_fits(self, structure: UNetStructure) -> None:
        """Raise DreamCacheError unless every layer of the adapter is in this U-Net, with the same width and heads."""
        missing = [layer.name for layer in self.layers if layer not in structure.layers]
        if missing and self.base_model == structure.base_model:
            raise DreamCacheError(
                f"The adapter sits on layers that this model of {self.base_model} lacks ({', '.join(missing)}), as "
                "distilled models do: load an adapter that was trained on it, or the model that it was made of."
            )
        if missing:
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
