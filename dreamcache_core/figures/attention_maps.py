"""Attention maps: which places in the references the image tokens of a layer attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..reference.masks import resize_mask


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The attention of one image's tokens to one reference in a layer, averaged over heads. Float32, on the CPU.

    `over_image`: (height, width, 3), for each image token: the share of its attention that this reference receives,
    0…1, and that share times the attention's mean position (down, right) in the reference, 0…1. All three are
    multiplied by the region.
    `over_reference`: (height, width), for each token of the reference: the share of the region's attention that it
    receives. The shares of all references in the layer add up to 1.
    """

    over_image: torch.Tensor
    over_reference: torch.Tensor


def attention_maps(
    query: torch.Tensor,
    key: torch.Tensor,
    heads: int,
    region: torch.Tensor,
    kept: Sequence[torch.Tensor],
    bias: torch.Tensor | None = None,
    max_weights: int = 2**24,
    own_key: torch.Tensor | None = None,
) -> list[AttentionMap]:
    """The attention map of each reference in a layer.

    `query`: (image tokens, channels). `key`: (cached tokens, channels), the kept tokens of all references, followed by
    padding. `region`: (height, width), the weight of each image token, 0…1. `kept`: for each reference, (height, width)
    bool, True at the tokens that are in `key`. `bias`: (cached tokens,), added to the attention logits.
    `max_weights`: limits memory to this number of attention weights at a time; 4096 image tokens that attend to as many
    cached tokens with 8 heads have 134 million. `own_key`: (image tokens, channels), the keys of the image tokens
    themselves where they share the attention with the references.
    """
    kept = [tokens.to(query.device) for tokens in kept]
    counts = [int(tokens.sum()) for tokens in kept]
    # (cached tokens, 3 · references): the product with attention weights gives share and positions of each reference.
    positions = torch.block_diag(*map(_share_and_position, kept))
    queries = query.float().unflatten(-1, (heads, -1)).transpose(0, 1)
    keys = key[: len(positions)].float().unflatten(-1, (heads, -1)).transpose(0, 1)
    queries = queries * queries.shape[-1] ** -0.5
    if own_key is not None and len(own_key):
        keys = torch.cat([keys, own_key.float().unflatten(-1, (heads, -1)).transpose(0, 1)], dim=1)
    weights = region.flatten().float()
    received = torch.zeros(len(positions), device=query.device)
    sent = []
    step = max(1, max_weights // (heads * len(positions)))
    for part, weight in zip(queries.split(step, dim=1), weights.split(step), strict=True):
        logits = part @ keys.transpose(1, 2)
        if bias is not None:
            logits[..., : len(positions)] += bias[: len(positions)]
        attention = logits.softmax(-1).mean(0)[:, : len(positions)]
        received += weight @ attention
        sent.append(attention @ positions * weight.unsqueeze(-1))
    # All attention goes to the references, unless the image tokens attend to themselves too.
    total = weights.sum() if own_key is None or not len(own_key) else received.sum()
    received /= total.clamp(min=torch.finfo(torch.float32).tiny)
    over_image = torch.cat(sent).unflatten(0, tuple(region.shape)).split(3, dim=-1)
    over_reference = [
        torch.zeros(tokens.shape, device=query.device).masked_scatter(tokens, part)
        for tokens, part in zip(kept, received.split(counts), strict=True)
    ]
    return [AttentionMap(one.cpu(), other.cpu()) for one, other in zip(over_image, over_reference, strict=True)]


def mean_map(maps: Sequence[AttentionMap]) -> AttentionMap:
    """The mean of several maps of the same image and reference, at the highest resolution among them."""
    over_image = [each.over_image.movedim(-1, 0) for each in maps]
    size = max(tuple(each.shape[1:]) for each in over_image)
    reference_size = max(tuple(each.over_reference.shape) for each in maps)
    # A coarse token's share is spread over the fine tokens that it covers.
    densities = [(each.over_reference * each.over_reference.numel()).unsqueeze(0) for each in maps]
    density = torch.cat([resize_mask(each, *reference_size) for each in densities]).mean(0)
    return AttentionMap(
        over_image=torch.stack([resize_mask(each, *size) for each in over_image]).mean(0).movedim(0, -1),
        over_reference=density / density.numel(),
    )


def _share_and_position(kept: torch.Tensor) -> torch.Tensor:
    """For each kept token of a reference: 1 and the position (down, right) of its centre, 0…1. (tokens, 3)."""
    rows, columns = kept.nonzero(as_tuple=True)
    height, width = kept.shape
    return torch.stack([torch.ones_like(rows), (rows + 0.5) / height, (columns + 0.5) / width], dim=1)
