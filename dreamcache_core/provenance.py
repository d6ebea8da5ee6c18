"""Provenance: what an adapter was trained on, so that its file tells whoever finds it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .adapter import Adapter
    from .training import Trainer

VERSION = "0.1.0"
"""Of this project, as in pyproject.toml."""

_VALUES_OF_EACH = 64


@dataclass(frozen=True)
class Provenance:
    """One training of an adapter.

    `base_hash`: `hash_weights` of the base model's U-Net. `steps`, `batch`: as in TrainingSettings. `triplets`: how
    many there were to train on. `version`: of this project.
    """

    base_hash: str
    steps: int
    batch: int
    triplets: int
    version: str = VERSION

    @property
    def description(self) -> str:
        return (
            f"trained {self.steps:,} steps of {self.batch} on {self.triplets:,} triplets, with the base model "
            f"{self.base_hash[:12]}, by DreamCache {self.version}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Provenance:
        """What `to_json` gave; what later versions may have added to it is left out.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        steps, batch, triplets = (int(json[name]) for name in ("steps", "batch", "triplets"))
        return cls(str(json["base_hash"]), steps, batch, triplets, str(json["version"]))


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """A fingerprint of a network, in hexadecimal: SHA-256 of 64 values of each tensor, in the order of their names.

    The values lie at equal distances and are read in float16, so that a model is the same on every device, and in
    float32 as in the float16 it is mostly published in. What bfloat16 or float8 has rounded is another.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().flatten()
        places = torch.linspace(0, len(values) - 1, min(_VALUES_OF_EACH, len(values)), dtype=torch.float64).round()
        digest.update(name.encode())
        digest.update(values[places.long().to(values.device)].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()


def trained_adapter(trainer: Trainer, base_hash: str, triplets: int) -> Adapter:
    """What one keeps of a training so far: its averaged adapter, with this training added to its provenance."""
    adapter, settings = trainer.averaged_adapter(), trainer.settings
    adapter.provenance += (Provenance(base_hash, trainer.step, settings.batch, triplets),)
    return adapter
