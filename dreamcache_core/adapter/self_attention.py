"""The model's own self-attention as an adapter: no training and no weights of its own.

Image tokens x attend to the reference's tokens r beside their own, with the frozen block's weights:

    x ← x + Attn(Q(norm1 x), [K(norm1 x); K(norm1 r)], [V(norm1 x); V(norm1 r)])

r are cached features, passed through the frozen transformer's own norm and proj_in. ControlNet's "reference-only"
computes the same by running the reference through the U-Net beside every step. Frozen weights match features of a
similar noise level, so r must come from a caching pass at the step's own sigma. A trained adapter attends to features
of timestep 1 at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..unet import DEFAULT_STAGES, TransformerLayer, UNetStructure, select_layers
from .network import Attention, attend


@dataclass(frozen=True)
class SelfAttentionAdapter:
    """The choice to use a model's own self-attention, whatever the model.

    `all_layers`: in every transformer of the U-Net, not only in those that DreamCache adapts. `reuse_within`: how near
    cached features must be to a step's noise level, in logarithms of sigma; one of 1,000 timesteps is 0.006 away from
    the next. `layers`: those of the model that it is applied to, empty before.
    """

    all_layers: bool = False
    reuse_within: float = 1e-3
    layers: tuple[TransformerLayer, ...] = ()

    @property
    def description(self) -> str:
        """The adapter in a few lines, for the person at the graph."""
        layers = (
            "all transformers" if self.all_layers else "the middle block's and every other transformer of the decoder"
        )
        return (
            f"the model's own attention, for SD1.x, SD2.x and SDXL, no parameters\nlayers: {layers}\n"
            "No training: carries over colours, texture and look. A trained adapter keeps identity better."
        )

    def on(self, structure: UNetStructure) -> SelfAttentionAdapter:
        """The same choice for a certain U-Net."""
        layers = structure.layers if self.all_layers else select_layers(structure.layers, DEFAULT_STAGES)
        return replace(self, layers=layers)


@dataclass(frozen=True, eq=False)
class SelfAttentionLayer:
    """The self-attention of a transformer's first block. `transformer`: a frozen SpatialTransformer in the LDM layout,
    with `norm`, `proj_in`, and blocks with `norm1` and `attn1`.
    """

    transformer: Any

    @property
    def _block(self) -> Any:
        return self.transformer.transformer_blocks[0]

    def keys_values(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of cached features (references, channels, height, width): (references, tokens, channels) each.

        The features must be those of entire references, because the norm's statistics are.
        """
        transformer, attention = self.transformer, self._block.attn1
        normed = transformer.norm(features)
        if transformer.use_linear:
            tokens = transformer.proj_in(normed.flatten(2).transpose(1, 2))
        else:
            tokens = transformer.proj_in(normed).flatten(2).transpose(1, 2)
        tokens = self._block.norm1(tokens)
        return attention.to_k(tokens), attention.to_v(tokens)

    def attend_jointly(
        self,
        query: torch.Tensor,
        own_key: torch.Tensor,
        own_value: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attention = attend,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The attention to references and image at once, before the block's `to_out`: (batch, tokens, channels).

        `query`, `own_key`, `own_value`: the block's, of its image tokens, the same shape. `key`, `value`: of
        references, (rows, cached tokens, channels), gathered from `keys_values`. `bias`: added to their attention
        logits, (rows, 1, cached tokens). One row serves the batch, or latent n of each multiple of the rows has row n.
        """
        batch, tokens, _ = query.shape
        copies = batch // len(key)
        # The references' tokens come first, for whoever looks on to find them.
        keys = torch.cat([key.repeat(copies, 1, 1), own_key], dim=1)
        values = torch.cat([value.repeat(copies, 1, 1), own_value], dim=1)
        if bias is not None:
            copies = batch // len(bias)
            bias = torch.cat([bias.repeat(copies, 1, 1), bias.new_zeros(batch, 1, tokens)], dim=2)
        return attention(query, keys, values, self._block.attn1.heads, bias)

    def forward(
        self,
        x: torch.Tensor,
        self_attention: torch.Tensor | None,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attention = attend,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The change to the self-attention's output, (batch, tokens, channels).

        `x`: the block's image tokens, (batch, tokens, channels). `self_attention`: the block's output for them, the
        same shape; None if something else has changed it, and it must be computed here. The rest: as `attend_jointly`
        takes it.
        """
        own = self._block.attn1
        tokens = self._block.norm1(x)
        query, own_key, own_value = own.to_q(tokens), own.to_k(tokens), own.to_v(tokens)
        if self_attention is None:
            self_attention = own.to_out(attention(query, own_key, own_value, own.heads, None))
        return own.to_out(self.attend_jointly(query, own_key, own_value, key, value, attention, bias)) - self_attention
