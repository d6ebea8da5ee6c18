"""What shows an adapter, while it learns, where in a reference lies what a place of a scene shows.

The denoising loss alone finds that out too, but only after thousands of steps: as long as an adapter looks everywhere,
its values are those of nothing in particular. Scenes are composed, so the places are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from dreamcache.dreamcache_core.adapter.network import Adapter, AdapterLayer

from .composer import Composed

FINE = 64
"""Tokens of the coarsest layer that is shown. In coarser ones, a token is a quarter of the picture's side."""


class Alignment:
    """Watches what an adapter's layers ask and find, from which its loss follows."""

    def __init__(self, adapter: Adapter) -> None:
        self._layers = [adapter[layer.name] for layer in adapter.layers]
        self._seen: dict[AdapterLayer, dict[str, torch.Tensor]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the queries and keys of all that is computed inside."""
        self._seen = {layer: {} for layer in self._layers}

        def keep(layer: AdapterLayer, name: str):
            return layer.get_submodule(name).register_forward_hook(
                lambda module, args, output: self._seen[layer].update({name: output})
            )

        handles = [keep(layer, name) for layer in self._layers for name in ("to_q", "to_k")]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, composed: Composed) -> torch.Tensor:
        """How unlikely the layers are to look where they should, in nats: the mean over the subjects' places.

        The rows that were computed are those of `composed`, once or several times in the same order, and read all
        tokens of their references.
        """
        seen = [
            (layer, kept["to_q"], kept["to_k"])
            for layer, kept in self._seen.items()
            if kept and kept["to_q"].shape[1] >= FINE
        ]
        # Layers of one size are shown the same.
        sizes = {query.shape[1] for _, query, _ in seen}
        wanted = {tokens: wanted_attention(composed, math.isqrt(tokens)) for tokens in sizes}
        return torch.stack([_surprise(layer, query, key, wanted[query.shape[1]]) for layer, query, key in seen]).mean()


def _surprise(layer: AdapterLayer, query: torch.Tensor, key: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The loss of one layer. `wanted`: of `wanted_attention`."""
    query, key = (tensor.unflatten(-1, (layer.heads, -1)).transpose(1, 2).float() for tensor in (query, key))
    logits = query @ key.mT / query.shape[-1] ** 0.5
    # A layer looks there if any of its heads does.
    looked = logits.softmax(-1).mean(1)
    wanted = wanted.repeat(len(looked) // len(wanted), 1, 1)
    return -(wanted * (looked + 1e-6).log()).sum() / wanted.sum().clamp(min=1)


@torch.no_grad()
def wanted_attention(composed: Composed, side: int) -> torch.Tensor:
    """Where in its reference each place of a scene finds itself, (scenes, places, places of the reference), both of
    side × side: the four nearest, that sum to 1; 0 where the place isn't the subject's, or its reference lacks it.
    """
    count = len(composed.places)
    grid = F.affine_grid(composed.places, [count, 1, side, side], align_corners=False)
    in_scenes = F.adaptive_avg_pool2d(composed.subjects[:, None], side).flatten(1)
    masks = F.adaptive_avg_pool2d(composed.masks[:, None], side)
    in_references = F.grid_sample(masks, grid, align_corners=False).flatten(1)
    # Of each place of the reference, a picture in which only it is white, seen from the scene.
    each = torch.eye(side * side, device=grid.device).view(1, -1, side, side).expand(count, -1, -1, -1)
    found = F.grid_sample(each, grid, align_corners=False).flatten(2).mT
    return found * ((in_scenes > 0.5) & (in_references > 0.5))[..., None]
