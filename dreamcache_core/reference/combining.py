"""Combining references: all of them side by side, one for each latent, or their average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import DreamCacheError
from ..unet import PIXELS_PER_LATENT
from .cache import CachingInput, ReferenceBatch, ReferenceCache, Source, mean_features


def combine(
    references: Sequence[ReferenceCache], strengths: Sequence[float], per_latent: bool = False
) -> ReferenceCache:
    """All references, each with its strength; those of strength 0 are left out.

    `per_latent`: each latent of the batch attends to the reference of its own number.
    Raises DreamCacheError if they are of several base models, or if none is left.
    """
    return ReferenceCache(_weighted(references, strengths), per_latent)


def average(references: Sequence[ReferenceCache], strengths: Sequence[float]) -> ReferenceCache:
    """One reference, whose features are the mean of all, weighted by their strengths.

    Raises DreamCacheError if they are of several base models or sizes, or all of strength 0.
    """
    batches = _weighted(references, strengths)
    sizes = sorted({batch.latent_size for batch in batches})
    if len(sizes) > 1:
        words = " and ".join(f"{PIXELS_PER_LATENT * width}×{PIXELS_PER_LATENT * height}" for height, width in sizes)
        raise DreamCacheError(
            f"The references have different sizes ({words} pixels), so they cannot be averaged: set mode to "
            "concatenate, or encode images of the same shape."
        )
    layers, weights = ReferenceCache(batches).layers, [batch.strength for batch in batches]
    averaged = replace(
        batches[0],
        features={
            layer.name: mean_features([batch.features[layer.name] for batch in batches], weights) for layer in layers
        },
        layers=layers,
        source=_common_source(batches),
        strength=1.0,
        subject=None,
        caching_inputs=_weighted_inputs(batches),
    )
    return ReferenceCache((averaged,))


def _weighted(references: Sequence[ReferenceCache], strengths: Sequence[float]) -> tuple[ReferenceBatch, ...]:
    batches = tuple(
        replace(batch, strength=batch.strength * strength)
        for cache, strength in zip(references, strengths, strict=True)
        for batch in cache.batches
        if strength
    )
    if not batches:
        raise DreamCacheError("All references have a strength of 0: raise at least one.")
    base_models = dict.fromkeys(cache.base_model for cache in references)
    if len(base_models) > 1:
        raise DreamCacheError(
            f"The references were encoded with different base models ({' and '.join(base_models)}): encode all of "
            "them with the model you generate with."
        )
    return batches


def _weighted_inputs(batches: Sequence[ReferenceBatch]) -> tuple[CachingInput, ...]:
    """The caching inputs of batches with their weights in the batches' average; empty if one is unknown."""
    if not all(batch.caching_inputs for batch in batches):
        return ()
    weighted = []
    for batch in batches:
        # A batch may be an average itself, and counts for as much as its references.
        total = sum(given.weight * len(given) for given in batch.caching_inputs)
        share = batch.strength * len(batch) / total
        weighted += [replace(given, weight=share * given.weight) for given in batch.caching_inputs]
    return tuple(weighted)


def _common_source(batches: Sequence[ReferenceBatch]) -> Source | None:
    """The source of all of them, with all thumbnails; None if one is unknown or has other weights."""
    sources = [batch.source for batch in batches if batch.source]
    if len(sources) < len(batches) or len({source.weights for source in sources}) > 1:
        return None
    return replace(sources[0], thumbnails=tuple(image for source in sources for image in source.thumbnails))
