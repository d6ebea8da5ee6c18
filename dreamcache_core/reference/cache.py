"""The reference cache: features that one pass of the frozen U-Net computes from a reference (paper, section 3.1)."""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..errors import DreamCacheError
from ..unet import TransformerLayer, UNetStructure
from ..version import VERSION
from .masks import resize_mask
from .noise_levels import NoiseLevels

# Added to an attention logit, it leaves the token out. Not -inf, from which some attention kernels make NaN.
_LEFT_OUT = -1e4


@dataclass(frozen=True)
class Source:
    """What references were encoded with.

    `base_hash`: `hash_weights` of the U-Net in its file. `patched`: whether LoRAs or other patches changed these
    weights. `thumbnails`: one small JPEG of each reference. `version`: of this project.
    """

    base_hash: str
    patched: bool
    thumbnails: tuple[bytes, ...] = ()
    version: str = VERSION

    @property
    def weights(self) -> str:
        """The U-Net's weights in words."""
        return f"{self.base_hash[:12]} with LoRAs" if self.patched else self.base_hash[:12]

    @property
    def images(self) -> list[Image.Image]:
        """The thumbnails, opened."""
        return [Image.open(io.BytesIO(thumbnail)).convert("RGB") for thumbnail in self.thumbnails]


@dataclass(frozen=True, eq=False)
class CachingInput:
    """What a caching pass takes beside the model, so that it can be run again at any noise level.

    `latent`, `noise`: (references, 4, height, width), in the VAE's scale. `context`: the empty prompt's conditioning,
    (1, tokens, channels). `pooled`: its pooled vector, (1, channels), or None. `weight`: of each of these references in
    an average. `noise_levels`: the features of passes at other noise levels, which sampling runs add.
    """

    latent: torch.Tensor
    noise: torch.Tensor
    context: torch.Tensor
    pooled: torch.Tensor | None = None
    weight: float = 1.0
    noise_levels: NoiseLevels = field(default_factory=NoiseLevels)

    def __len__(self) -> int:
        """The number of references."""
        return len(self.latent)


@dataclass(frozen=True, eq=False)
class ReferenceBatch:
    """Features of one or more references of the same size, recorded in one caching pass.

    `features`: layer name → (references, channels, height, width), the input of that layer's transformer.
    `base_model`: the family in words, such as `SD1.x`. `layers`: the cached layers.
    `latent_size`: (height, width) of the references in latent pixels. `timestep`: of the caching pass.
    `prompt`: of the caching pass, empty in the paper. `source`: what they were encoded with, None if unknown.
    `strength`: weight of each of these references beside others in the same cache.
    `subject`: (references, height, width) in latent pixels, 1 on the subject; only tokens on it are attended to.
    None: all tokens are. `caching_inputs`: one, or of an average one for each batch in it; empty if they are unknown.
    """

    features: dict[str, torch.Tensor]
    base_model: str
    layers: tuple[TransformerLayer, ...]
    latent_size: tuple[int, int]
    timestep: int
    prompt: str
    source: Source | None = None
    strength: float = 1.0
    subject: torch.Tensor | None = None
    caching_inputs: tuple[CachingInput, ...] = ()

    def __len__(self) -> int:
        """The number of references."""
        return self.features[self.layers[0].name].shape[0]

    def features_at(self, sigma: float, layer: str, weights: Hashable) -> torch.Tensor:
        """The features nearest to a noise level: (references, channels, height, width).

        `weights`: of the U-Net. Raises DreamCacheError if none are cached with these weights.
        """
        features = [given.noise_levels.nearest(sigma, weights)[layer] for given in self.caching_inputs]
        if len(features) == 1 and len(features[0]) == len(self):
            return features[0]
        return mean_features(features, [given.weight for given in self.caching_inputs])

    @property
    def images(self) -> list[Image.Image | None]:
        """A thumbnail of each reference, None if there is none."""
        images = self.source.images if self.source else []
        return [images[number] if images else None for number in range(len(self))]

    def kept(self, layer: str) -> torch.Tensor:
        """The tokens that are attended to: (references, height, width) bool, all of them or only the subject's."""
        recorded = self.features.get(layer)
        if recorded is None:
            recorded = self.caching_inputs[0].noise_levels.latest[layer]
        height, width = recorded.shape[2:]
        if self.subject is None:
            return torch.ones(len(self), height, width, dtype=torch.bool)
        subject = resize_mask(self.subject, height, width)
        # At least half of a token is the subject; of a subject too small for that, the tokens that have most of it.
        return subject >= subject.amax(dim=(1, 2), keepdim=True).clamp(max=0.5)


def mean_features(features: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of a layer's features over all references of several batches: (1, channels, height, width).

    `features`: of each batch, (references, channels, height, width). `weights`: of each reference in that batch.
    """
    weighted = list(zip(features, weights, strict=True))
    total = sum(weight * len(of_batch) for of_batch, weight in weighted)
    return (torch.stack([weight * of_batch.sum(0) for of_batch, weight in weighted]).sum(0) / total).unsqueeze(0)


@dataclass(frozen=True, eq=False)
class ReferenceCache:
    """ReferenceCache of one base model, of any number and sizes: what nodes hand to each other.

    `per_latent`: each latent of the batch attends to the reference of its own number, not to all of them.
    """

    batches: tuple[ReferenceBatch, ...]
    per_latent: bool = False

    def __len__(self) -> int:
        """The number of references."""
        return sum(map(len, self.batches))

    @property
    def base_model(self) -> str:
        return self.batches[0].base_model

    @property
    def layers(self) -> tuple[TransformerLayer, ...]:
        """The layers that all references have."""
        first, *others = self.batches
        return tuple(layer for layer in first.layers if all(layer in other.layers for other in others))

    @property
    def images(self) -> list[Image.Image | None]:
        """A thumbnail of each reference, None if there is none."""
        return [image for batch in self.batches for image in batch.images]

    def features(self, layer: str) -> list[torch.Tensor]:
        """The features of each reference: (channels, height, width)."""
        return [features for batch in self.batches for features in batch.features[layer]]

    def kept(self, layer: str) -> list[torch.Tensor]:
        """Which tokens of each reference are attended to: (height, width) bool."""
        return [kept for batch in self.batches for kept in batch.kept(layer)]

    def tokens(self, layer: str) -> torch.Tensor:
        """The tokens that `layer` attends to, gathered by `gather`."""
        return self.gather(layer, [batch.features[layer].flatten(2).transpose(1, 2) for batch in self.batches])

    def gather(self, layer: str, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Joins the tokens of all references in one row: (1, tokens, channels). If `per_latent`, each reference has a
        row of its own, (references, tokens of the largest, channels), and smaller ones are padded with zeros.

        `tokens`: of each batch, (references, height · width, channels). Those that aren't kept are left out.
        """
        first, *others = self.batches
        if not others and not (self.per_latent and len(first) > 1) and first.subject is None and first.strength == 1:
            return tokens[0].flatten(0, 1).unsqueeze(0)  # a view, not a copy
        rows = self._rows(layer, tokens)
        return pad_sequence(rows, batch_first=True) if self.per_latent else torch.cat(rows).unsqueeze(0)

    def bias(self, layer: str) -> torch.Tensor | None:
        """The addition to the attention logits of the gathered tokens: (rows of `gather`, 1, tokens) float32.

        It is the logarithm of a reference's strength, so that one of strength 2 counts as if it were there twice, and a
        large negative number at padding. None where it is 0 everywhere.
        """
        counts = [int(kept.sum()) for kept in self.kept(layer)]
        if self.per_latent:
            rows = [torch.zeros(count) for count in counts]
            bias = pad_sequence(rows, batch_first=True, padding_value=_LEFT_OUT).unsqueeze(1)
        else:
            strengths = [batch.strength for batch in self.batches for _ in range(len(batch))]
            rows = [torch.full((count,), math.log(one)) for count, one in zip(counts, strengths, strict=True)]
            bias = torch.cat(rows).reshape(1, 1, -1)
        return bias if bias.any() else None

    def check_fits(self, structure: UNetStructure, layers: tuple[TransformerLayer, ...]) -> None:
        """Raise DreamCacheError unless the cache is from this base model and has the features of `layers`."""
        for batch in self.batches:
            if batch.base_model != structure.base_model:
                raise DreamCacheError(
                    f"The reference cache was encoded with {batch.base_model}, but the model is "
                    f"{structure.base_model}: connect this model to DreamCache Encode Reference too."
                )
            missing = [layer.name for layer in layers if layer not in batch.layers]
            if missing:
                raise DreamCacheError(
                    f"The reference cache lacks layers that the adapter uses ({', '.join(missing)}): encode the "
                    "reference again, and save it with layers set to all."
                )

    def check_noise_levels(self, structure: UNetStructure, reads_pooled: bool) -> None:
        """Raise DreamCacheError unless caching passes at other noise levels are possible.

        `reads_pooled`: whether the model reads pooled vectors of prompts.
        """
        if not all(batch.caching_inputs for batch in self.batches):
            raise DreamCacheError(
                "The reference cache holds features of one timestep, which only trained adapters use, and the model's "
                "own attention needs those of every step: encode the image again with DreamCache Encode Reference, and "
                "save it again."
            )
        for given in (given for batch in self.batches for given in batch.caching_inputs):
            if given.context.shape[-1] != structure.context_dim or (reads_pooled and given.pooled is None):
                raise DreamCacheError(
                    f"The empty prompt in the reference cache is not one that {structure.base_model} reads: encode the "
                    "image again with DreamCache Encode Reference, and save it again."
                )

    def compare_weights(self, model: Source) -> str | None:
        """A warning if a reference was encoded with other weights than those of `model`, else None."""
        for batch in self.batches:
            if batch.source and batch.source.weights != model.weights:
                return (
                    f"The reference was encoded with different weights of {batch.base_model} ({batch.source.weights}) "
                    f"than this model's ({model.weights}): it still works, but the subject may look less like the "
                    "reference."
                )
        return None

    def _rows(self, layer: str, tokens: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tokens of each reference that are kept: (tokens, channels)."""
        rows = []
        for batch, of_batch in zip(self.batches, tokens, strict=True):
            if batch.subject is None:
                rows += list(of_batch)
            else:
                rows += [row[kept.flatten()] for row, kept in zip(of_batch, batch.kept(layer), strict=True)]
        return rows
