"""The reference cache: what one pass of the frozen U-Net saw in the reference (paper, section 3.1)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image

from .errors import DreamCacheError
from .layers import TransformerLayer, UNetStructure
from .masks import resize_mask
from .provenance import VERSION


@dataclass(frozen=True)
class Source:
    """What a reference cache was made with and of.

    `base_hash`: `hash_weights` of the U-Net, as its file has it. `patched`: whether LoRAs or other patches were on
    these weights. `thumbnails`: one small JPEG of each reference. `version`: of this project.
    """

    base_hash: str
    patched: bool
    thumbnails: tuple[bytes, ...] = ()
    version: str = VERSION

    @property
    def weights(self) -> str:
        """In words."""
        return f"{self.base_hash[:12]} with LoRAs" if self.patched else self.base_hash[:12]

    @property
    def pictures(self) -> list[Image.Image]:
        """The thumbnails, opened."""
        return [Image.open(io.BytesIO(thumbnail)).convert("RGB") for thumbnail in self.thumbnails]


@dataclass(frozen=True, eq=False)
class ReferenceCache:
    """Cached features of one or more references, and what they came from.

    `features`: layer name → (references, channels, height, width), what entered that layer's transformer.
    `base_model`: the family in words, as UNetStructure has it. `layers`: the cached layers.
    `latent_size`: (height, width) of the reference in latent pixels. `timestep`: of the caching pass.
    `prompt`: of the caching pass, empty in the paper. `source`: what it was made with, if that is known.
    `strength`: of each of its references, beside those that it is combined with.
    `subject`: (references, height, width) in latent pixels, 1 on the subject, of which alone is read; None: of all.
    """

    paired: ClassVar[bool] = False
    """As in CombinedReferences."""

    features: Mapping[str, torch.Tensor]
    base_model: str
    layers: tuple[TransformerLayer, ...]
    latent_size: tuple[int, int]
    timestep: int
    prompt: str
    source: Source | None = None
    strength: float = 1.0
    subject: torch.Tensor | None = None

    @property
    def references(self) -> int:
        return self.features[self.layers[0].name].shape[0]

    @property
    def pictures(self) -> list[Image.Image | None]:
        """A small picture of each reference, if it is known."""
        pictures = self.source.pictures if self.source else []
        return [pictures[number] if pictures else None for number in range(self.references)]

    def tokens(self, layer: str, paired: bool = False) -> torch.Tensor:
        """What the adapter of `layer` reads, all references in a row: (1, tokens of all, channels).

        `paired`: each by itself, (references, tokens, channels); of references with a subject, `rows` gives these.
        """
        if self.subject is not None:
            return torch.cat(self.rows(layer)).unsqueeze(0)
        tokens = self._tokens(layer)
        return tokens if paired else tokens.flatten(0, 1).unsqueeze(0)

    def rows(self, layer: str) -> list[torch.Tensor]:
        """What is read of each reference: (tokens, channels), all of its height · width or only its subject's."""
        tokens = self._tokens(layer)
        if self.subject is None:
            return list(tokens)
        return [row[kept.flatten()] for row, kept in zip(tokens, self.kept(layer), strict=True)]

    def kept(self, layer: str) -> torch.Tensor:
        """Which tokens are read: (references, height, width), True at all of them or only at the subject's."""
        count, _, height, width = self.features[layer].shape
        if self.subject is None:
            return torch.ones(count, height, width, dtype=torch.bool)
        subject = resize_mask(self.subject, height, width)
        # At least half of a token is the subject; of one too small for that, the tokens that have most of it.
        return subject >= subject.amax(dim=(1, 2), keepdim=True).clamp(max=0.5)

    def bias(self, layer: str, paired: bool = False) -> torch.Tensor | None:
        """What is added to the attention's logits of these tokens: nothing, for all are of equal strength."""
        return None

    @property
    def caches(self) -> tuple[ReferenceCache, ...]:
        """As in CombinedReferences."""
        return (self,)

    def compare_weights(self, model: Source) -> str | None:
        """What to tell someone who draws with `model`, if that isn't what the reference was encoded with."""
        if self.source is None or self.source.weights == model.weights:
            return None
        return (
            f"The reference was encoded with other weights of {self.base_model} ({self.source.weights}) than this "
            f"model's ({model.weights}): it works, and the subject may be less like itself."
        )

    def _tokens(self, layer: str) -> torch.Tensor:
        return self.features[layer].flatten(2).transpose(1, 2)

    def check_fits(self, structure: UNetStructure, layers: tuple[TransformerLayer, ...]) -> None:
        """Raise DreamCacheError unless the cache is from this base model and holds what `layers` read."""
        if self.base_model != structure.base_model:
            raise DreamCacheError(
                f"The reference cache was encoded with {self.base_model} and the model is {structure.base_model}: "
                "connect this model to DreamCache Encode Reference too."
            )
        missing = [layer.name for layer in layers if layer not in self.layers]
        if missing:
            raise DreamCacheError(
                f"The reference cache lacks layers that the adapter reads ({', '.join(missing)}): encode the reference "
                "again, and save it with layers set to all."
            )
