"""Attention maps: means over layers and latents, however the attention is cut into pieces."""

from __future__ import annotations

import torch
from dreamcache.dreamcache_core.figures.attention_maps import AttentionMap, attention_maps, mean_map


def naive(query: torch.Tensor, key: torch.Tensor, heads: int, bias: torch.Tensor) -> torch.Tensor:
    """The whole attention, mean of all heads: (tokens, cached tokens)."""
    queries, keys = (tensor.unflatten(-1, (heads, -1)).transpose(0, 1) for tensor in (query, key))
    return (queries @ keys.mT / queries.shape[-1] ** 0.5 + bias).softmax(-1).mean(0)


def test_maps_are_the_whole_attention_however_it_is_cut() -> None:
    torch.manual_seed(0)
    heads = 2
    kept = [torch.rand(4, 5) > 0.5, torch.ones(2, 3, dtype=torch.bool)]
    counts = [int(tokens.sum()) for tokens in kept]
    query, region, bias = torch.randn(12, 16), torch.rand(3, 4), torch.randn(sum(counts))
    key = torch.randn(sum(counts) + 2, 16)  # the last two fill up
    whole = naive(query, key[:-2], heads, bias)
    of_each = (region.flatten() @ whole / region.sum()).split(counts)
    for at_once in (1, 10_000):
        maps = attention_maps(query, key, heads, region, kept, torch.cat([bias, torch.zeros(2)]), at_once)
        for seen, tokens, share, attention in zip(maps, kept, of_each, whole.split(counts, dim=1), strict=True):
            torch.testing.assert_close(seen.over_reference[tokens], share)
            assert not seen.over_reference[~tokens].any()
            rows, columns = tokens.nonzero(as_tuple=True)
            places = torch.stack([(rows + 0.5) / tokens.shape[0], (columns + 0.5) / tokens.shape[1]], dim=1)
            expected = torch.cat([attention.sum(1, keepdim=True), attention @ places], dim=1).reshape(3, 4, 3)
            torch.testing.assert_close(seen.over_image, expected * region.unsqueeze(-1))


def test_a_mean_of_layers_is_as_fine_as_the_finest_and_what_is_looked_at_is_still_all() -> None:
    coarse = AttentionMap(torch.tensor([[[1.0, 0.5, 0.25]]]), torch.tensor([[1.0]]))
    fine = AttentionMap(torch.zeros(2, 2, 3), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    mean = mean_map([coarse, fine])
    assert torch.equal(mean.over_image, torch.tensor([0.5, 0.25, 0.125]).expand(2, 2, 3))
    assert torch.equal(mean.over_reference, torch.tensor([[0.625, 0.125], [0.125, 0.125]]))
