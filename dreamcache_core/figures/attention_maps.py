"""Attention maps: where a layer looks in references while it draws a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..reference.masks import resize_mask


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where a layer that draws one picture looks in one reference; the mean of its heads, float32.

    `seen`: (height, width, 3), of each token of the picture: which share of its attention goes to this reference, 0…1,
    and this share times the place, down and right, 0…1, that it goes to on average. Times the region.
    `looked_at`: (height, width), of each token of the reference: which share of the region's attention goes to it. Over
    all references that the layer reads, that is 1.
    """

    seen: torch.Tensor
    looked_at: torch.Tensor


def attention_maps(
    query: torch.Tensor,
    key: torch.Tensor,
    heads: int,
    region: torch.Tensor,
    kept: Sequence[torch.Tensor],
    bias: torch.Tensor | None = None,
    own_key: torch.Tensor | None = None,
    at_once: int = 2**24,
) -> list[AttentionMap]:
    """A map of each reference that a layer reads.

    `query`: (tokens, channels) of the picture. `key`: (cached tokens, channels), all references in a row; what follows
    them fills up. `region`: (height, width), how much each token of the picture counts, 0…1. `kept`: of each reference,
    (height, width), True at the tokens that `key` has. `bias`: (cached tokens,), what is added to the logits.
    `own_key`: (tokens, channels) of the image tokens themselves, where they share the attention with the references.
    `at_once`: how many attention weights may be there together, for 4096 tokens that look at as many have 134 million.
    """
    kept = [tokens.to(query.device) for tokens in kept]
    counts = [int(tokens.sum()) for tokens in kept]
    places = torch.block_diag(*map(_places, kept))
    queries = query.float().unflatten(-1, (heads, -1)).transpose(0, 1)
    keys = key[: len(places)].float().unflatten(-1, (heads, -1)).transpose(0, 1)
    queries = queries * queries.shape[-1] ** -0.5
    if own_key is not None and len(own_key):
        keys = torch.cat([keys, own_key.float().unflatten(-1, (heads, -1)).transpose(0, 1)], dim=1)
    weights = region.flatten().float()
    looked_at = torch.zeros(len(places), device=query.device)
    seen = []
    step = max(1, at_once // (heads * len(places)))
    for part, weight in zip(queries.split(step, dim=1), weights.split(step), strict=True):
        logits = part @ keys.transpose(1, 2)
        if bias is not None:
            logits[..., : len(places)] += bias[: len(places)]
        attention = logits.softmax(-1).mean(0)[:, : len(places)]
        looked_at += weight @ attention
        seen.append(attention @ places * weight.unsqueeze(-1))
    # The references' share of the attention, 1 each where there is nothing else to attend to.
    total = weights.sum() if own_key is None or not len(own_key) else looked_at.sum()
    looked_at /= total.clamp(min=torch.finfo(torch.float32).tiny)
    of_picture = torch.cat(seen).unflatten(0, tuple(region.shape)).split(3, dim=-1)
    in_references = [
        torch.zeros(tokens.shape, device=query.device).masked_scatter(tokens, part)
        for tokens, part in zip(kept, looked_at.split(counts), strict=True)
    ]
    return [AttentionMap(one.cpu(), other.cpu()) for one, other in zip(of_picture, in_references, strict=True)]


def mean_map(maps: Sequence[AttentionMap]) -> AttentionMap:
    """The mean of maps of the same picture and reference, as fine as the finest of them."""
    seen = [each.seen.movedim(-1, 0) for each in maps]
    size = max(tuple(each.shape[1:]) for each in seen)
    finest = max(tuple(each.looked_at.shape) for each in maps)
    # What goes to a coarse token goes to all that it is of the finest.
    densities = [(each.looked_at * each.looked_at.numel()).unsqueeze(0) for each in maps]
    density = torch.cat([resize_mask(each, *finest) for each in densities]).mean(0)
    return AttentionMap(
        seen=torch.stack([resize_mask(each, *size) for each in seen]).mean(0).movedim(0, -1),
        looked_at=density / density.numel(),
    )


def _places(kept: torch.Tensor) -> torch.Tensor:
    """Of the tokens of one reference: (tokens, 3), 1 and where its middle is, down and right, 0…1."""
    rows, columns = kept.nonzero(as_tuple=True)
    height, width = kept.shape
    return torch.stack([torch.ones_like(rows), (rows + 0.5) / height, (columns + 0.5) / width], dim=1)
