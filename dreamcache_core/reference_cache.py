"""The reference cache: what one pass of the frozen U-Net saw in the reference (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import DreamCacheError
from .files import read_header, read_tensors, write_file
from .layers import TransformerLayer, UNetStructure
from .masks import resize_mask

FILE_KIND = "reference_cache"
FILE_VERSION = 1
# Beside the features in a file, which go by their layers' names.
_SUBJECT = "subject"


@dataclass(frozen=True, eq=False)
class ReferenceCache:
    """Cached features of one or more references, and what they came from.

    `features`: layer name → (references, channels, height, width), what entered that layer's transformer.
    `base_model`: the family in words, as UNetStructure has it. `layers`: the cached layers.
    `latent_size`: (height, width) of the reference in latent pixels. `timestep`: of the caching pass.
    `prompt`: of the caching pass, empty in the paper.
    `subject`: (references, height, width) in latent pixels, 1 on the subject, of which alone is read; None: of all.
    """

    features: Mapping[str, torch.Tensor]
    base_model: str
    layers: tuple[TransformerLayer, ...]
    latent_size: tuple[int, int]
    timestep: int
    prompt: str
    subject: torch.Tensor | None = None

    @property
    def references(self) -> int:
        return self.features[self.layers[0].name].shape[0]

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
        subject = resize_mask(self.subject, *self.features[layer].shape[2:]).flatten(1)
        # At least half of a token is the subject; of one too small for that, the tokens that have most of it.
        kept = subject >= subject.amax(dim=1, keepdim=True).clamp(max=0.5)
        return [row[of_row] for row, of_row in zip(tokens, kept, strict=True)]

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
                "with the layers the adapter was trained for."
            )

    def save(self, path: Path) -> None:
        header = {
            "base_model": self.base_model,
            "layers": [layer.to_json() for layer in self.layers],
            "latent_size": list(self.latent_size),
            "timestep": self.timestep,
            "prompt": self.prompt,
        }
        subject = {} if self.subject is None else {_SUBJECT: self.subject}
        write_file(path, FILE_KIND, FILE_VERSION, header, {**self.features, **subject})


def load_reference_cache(path: Path) -> ReferenceCache:
    """Read a cache written by ReferenceCache.save. Raises DreamCacheError if the file is something else."""
    metadata, features = read_tensors(path)
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    if header is None:
        raise DreamCacheError(f"{path.name} is not a DreamCache reference cache.")
    height, width = header["latent_size"]
    subject = features.pop(_SUBJECT, None)
    return ReferenceCache(
        features=features,
        base_model=header["base_model"],
        layers=tuple(TransformerLayer(**layer) for layer in header["layers"]),
        latent_size=(height, width),
        timestep=header["timestep"],
        prompt=header["prompt"],
        subject=subject,
    )
