"""Provenance: what an adapter was trained on, which its file keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..version import VERSION

_VALUES_OF_EACH = 64


@dataclass(frozen=True)
class Provenance:
    """One training of an adapter.

    `base_hash`: `hash_weights` of the base model's U-Net. `steps`: how many were taken. `batch`: triplets of a step.
    `triplets`: how many the data set has. `version`: of this project.
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
        """Read what `to_json` gave, and ignore what a later version may have added.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        steps, batch, triplets = (int(json[name]) for name in ("steps", "batch", "triplets"))
        return cls(str(json["base_hash"]), steps, batch, triplets, str(json["version"]))


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """The fingerprint of a network, in hexadecimal: SHA-256 of 64 values of each tensor, in the order of their names.

    The values lie at equal distances and are read in float16. So a model has the same hash on every device, and in
    float32 as in float16, the usual precision of published files. Rounding to bfloat16 or float8 changes the hash.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().flatten()
        places = torch.linspace(0, len(values) - 1, min(_VALUES_OF_EACH, len(values)), dtype=torch.float64).round()
        digest.update(name.encode())
        digest.update(values[places.long().to(values.device)].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()
