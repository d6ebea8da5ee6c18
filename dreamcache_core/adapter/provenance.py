"""Provenance: how an adapter was trained, and with which base model. Adapter files keep it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..io.json_fields import Fields
from ..version import VERSION

# How many values of each tensor enter the hash.
_VALUES_PER_TENSOR = 64
# Of steps, and of triplets.
_MOST = 10**15


@dataclass(frozen=True)
class Provenance:
    """One training of an adapter. The fields are the keys of its JSON.

    `base_hash`: `hash_weights` of the base model's U-Net. `steps`: number of steps. `batch`: triplets in each step.
    `triplets`: size of the data set. `version`: of this project.
    """

    base_hash: str
    steps: int
    batch: int
    triplets: int
    version: str = VERSION

    @property
    def description(self) -> str:
        """The training in a sentence."""
        return (
            f"trained {self.steps:,} steps of {self.batch} on {self.triplets:,} triplets, with the base model "
            f"{self.base_hash[:12]}, by DreamCache {self.version}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Fields) -> Provenance:
        """The inverse of `to_json`. Ignores unknown keys, which a later version may have added.

        Raises MalformedError.
        """
        steps, batch, triplets = (fields.whole(name, 0, _MOST) for name in ("steps", "batch", "triplets"))
        return cls(fields.text("base_hash"), steps, batch, triplets, fields.text("version"))


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """The hash of a network in hexadecimal: SHA-256 of 64 evenly spaced values of each tensor, in order of the names.

    Values are rounded to float16, so that the hash is the same on every device, and in float32 and float16, the usual
    precisions of published files. Rounding to bfloat16 or float8 changes the hash. `weights`: name → tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().flatten()
        places = torch.linspace(0, len(values) - 1, min(_VALUES_PER_TENSOR, len(values)), dtype=torch.float64).round()
        digest.update(name.encode())
        digest.update(values[places.long().to(values.device)].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()
