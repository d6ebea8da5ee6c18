"""Attention that is quick to train on a CPU with few channels, where PyTorch's own isn't."""

from __future__ import annotations

from typing import Any

import torch


def plain_attention(
    _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """What ComfyUI takes as `optimized_attention_override`: (batch, tokens, channels) each, in bfloat16."""
    # Autocast would do the softmax in float32, which is twice the memory, and memory is what takes the time.
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (
            tensor.bfloat16().unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)
        )
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)


OPTIONS = {"optimized_attention_override": plain_attention}
"""Of a transformer, to be put beside others."""
