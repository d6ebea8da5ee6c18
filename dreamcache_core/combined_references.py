"""Several reference caches as one: all of them read together, or one by each latent, or their average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from .errors import DreamCacheError
from .layers import TransformerLayer, UNetStructure
from .reference_cache import ReferenceCache, Source

# Leaves a token out of a softmax. Not -inf, of which some implementations of attention make nan.
_LEFT_OUT = -1e4


@dataclass(frozen=True, eq=False)
class CombinedReferences:
    """Reference caches of one base model, of any sizes. What a ReferenceCache has and does, for several.

    `paired`: each latent of the batch reads the reference of its own number; not all of them.
    """

    caches: tuple[ReferenceCache, ...]
    paired: bool = False

    @property
    def base_model(self) -> str:
        return self.caches[0].base_model

    @property
    def layers(self) -> tuple[TransformerLayer, ...]:
        """Those that all of them have."""
        first, *others = self.caches
        return tuple(layer for layer in first.layers if all(layer in other.layers for other in others))

    @property
    def references(self) -> int:
        return sum(cache.references for cache in self.caches)

    def tokens(self, layer: str, paired: bool = False) -> torch.Tensor:
        """What the adapter of `layer` reads, all references in a row: (1, tokens of all, channels).

        `paired`: each by itself, (references, tokens of the largest, channels), smaller ones filled up with zeros.
        """
        if paired:
            return pad_sequence(self._rows(layer), batch_first=True)
        return torch.cat([cache.tokens(layer) for cache in self.caches], dim=1)

    def bias(self, layer: str, paired: bool = False) -> torch.Tensor | None:
        """What is added to the attention's logits of these tokens: (references if `paired` else 1, 1, tokens) float32.

        The logarithm of their strength, so that a reference of strength 2 is read as if it were there twice. Of tokens
        that fill up, something that leaves them out. None where it is 0 for all.
        """
        if paired:
            there = [torch.zeros(len(row)) for row in self._rows(layer)]
            bias = pad_sequence(there, batch_first=True, padding_value=_LEFT_OUT).unsqueeze(1)
        else:
            strengths = [torch.full((cache.tokens(layer).shape[1],), math.log(cache.strength)) for cache in self.caches]
            bias = torch.cat(strengths).reshape(1, 1, -1)
        return bias if bias.any() else None

    def _rows(self, layer: str) -> list[torch.Tensor]:
        """Tokens of each reference: (tokens, channels)."""
        return [row for cache in self.caches for row in cache.rows(layer)]

    def check_fits(self, structure: UNetStructure, layers: tuple[TransformerLayer, ...]) -> None:
        """As ReferenceCache.check_fits, of each."""
        for cache in self.caches:
            cache.check_fits(structure, layers)

    def compare_weights(self, model: Source) -> str | None:
        """As ReferenceCache.compare_weights, of the first that differs."""
        return next(filter(None, (cache.compare_weights(model) for cache in self.caches)), None)


References = ReferenceCache | CombinedReferences


def combine(references: Sequence[References], strengths: Sequence[float], paired: bool = False) -> CombinedReferences:
    """All of them, each with its strength; those of strength 0 are left out. `paired`: as in CombinedReferences.

    Raises DreamCacheError if they are of several base models, or none is left.
    """
    return CombinedReferences(_weighted(references, strengths), paired)


def average(references: Sequence[References], strengths: Sequence[float]) -> ReferenceCache:
    """One reference, whose features are the mean of all, weighted by their strengths.

    Raises DreamCacheError if they are of several base models or sizes, or all of strength 0.
    """
    caches = _weighted(references, strengths)
    first = caches[0]
    sizes = sorted({cache.latent_size for cache in caches})
    if len(sizes) > 1:
        words = " and ".join(f"{8 * width}×{8 * height}" for height, width in sizes)
        raise DreamCacheError(
            f"The references have different sizes ({words} pixels), so there is no average of them: set mode to "
            "concatenate, or encode pictures of one shape."
        )
    total = sum(cache.strength * cache.references for cache in caches)
    layers = CombinedReferences(caches).layers
    features = {}
    for layer in layers:
        sums = [cache.strength * cache.features[layer.name].sum(0) for cache in caches]
        features[layer.name] = (torch.stack(sums).sum(0) / total).unsqueeze(0)
    return replace(first, features=features, layers=layers, source=_common_source(caches), strength=1.0, subject=None)


def _weighted(references: Sequence[References], strengths: Sequence[float]) -> tuple[ReferenceCache, ...]:
    caches = tuple(
        replace(cache, strength=cache.strength * strength)
        for each, strength in zip(references, strengths, strict=True)
        for cache in each.caches
        if strength
    )
    if not caches:
        raise DreamCacheError("All references have a strength of 0, so there is nothing to read: raise one.")
    base_models = dict.fromkeys(each.base_model for each in references)
    if len(base_models) > 1:
        raise DreamCacheError(
            f"The references were encoded with different base models ({' and '.join(base_models)}): encode all of them "
            "with the model that draws."
        )
    return caches


def _common_source(caches: Sequence[ReferenceCache]) -> Source | None:
    sources = [cache.source for cache in caches if cache.source]
    if len(sources) < len(caches) or len({source.weights for source in sources}) > 1:
        return None
    return replace(sources[0], thumbnails=tuple(image for source in sources for image in source.thumbnails))
