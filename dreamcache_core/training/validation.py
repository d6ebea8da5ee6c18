"""Does it look? Held-out triplets are denoised with the right reference, with another's, and with none.

An adapter that ignores its reference has the same loss with any: the gap between another's and the right one is what it
has learned to see. Timesteps and noise are always the same, so that two validations of a training can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import DreamCacheError
from ..io.json_fields import Fields
from .batches import collate
from .loss import EncodedPrompts, FrozenBase, loss_at, sample_noise
from .processes import ALONE, Processes
from .settings import TrainingSettings
from .triplets import Triplets

FLAT_AFTER = 5
"""Validations without growth after which an early stop is offered."""
_GROWTH = 0.01


@dataclass(frozen=True)
class Validation:
    """Mean losses of the held-out triplets after a step. The fields are the keys of its JSON.

    `right`, `other`, `none`: with a triplet's own reference, with another triplet's, without one. `error`: the standard
    error of the gap over the triplets.
    """

    step: int
    right: float
    other: float
    none: float
    error: float

    @property
    def gap(self) -> float:
        """How much worse another's reference is: 0 for an adapter that ignores its reference."""
        return self.other - self.right

    @property
    def description(self) -> str:
        return (
            f"validation after step {self.step:,}: loss {self.right:.4f} with the right reference, {self.other:.4f} "
            f"with another's, {self.none:.4f} with none; gap {self.gap:.4f} ± {self.error:.4f}"
        )

    def to_json(self) -> dict[str, int | float]:
        return asdict(self)

    @classmethod
    def from_json(cls, json: Any) -> Validation:
        """The inverse of `to_json`. Raises MalformedError."""
        fields = Fields(json)
        right, other, none, error = map(fields.number, ("right", "other", "none", "error"))
        return cls(fields.whole("step", 1, 10**18), right, other, none, error)


def is_flat(validations: Sequence[Validation], patience: int) -> bool:
    """Whether the gap hasn't grown in the last `patience` validations: by less than 1 % over the best before them."""
    gaps = [validation.gap for validation in validations]
    if not patience or len(gaps) <= patience:
        return False
    best = max(gaps[:-patience])
    return max(gaps[-patience:]) <= best + _GROWTH * abs(best)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Some of the held-out triplets as the U-Net reads them.

    `numbers`: their places in the list. `others`: for each, the reference of another triplet.
    """

    numbers: torch.Tensor
    latents: torch.Tensor
    references: torch.Tensor
    others: torch.Tensor
    prompts: EncodedPrompts


class HeldOut:
    """The held-out triplets of a training. They are encoded once, in the first validation, and kept on the device."""

    def __init__(
        self,
        triplets: Triplets,
        settings: TrainingSettings,
        resolution: int,
        *,
        together: int,
        processes: Processes = ALONE,
    ) -> None:
        """`together`: how many triplets a forward pass takes. `processes`: those that share the work.

        Raises DreamCacheError if there is no other triplet whose reference could be read.
        """
        if len(triplets) < 2:
            raise DreamCacheError("A validation needs at least 2 held-out triplets, so that one can read another's.")
        self._triplets = triplets
        self._settings = settings
        self._resolution = resolution
        self._together = together
        self._processes = processes
        self._encoded: list[_Encoded] = []

    def __len__(self) -> int:
        return len(self._triplets)

    @torch.no_grad()
    def validate(self, base: FrozenBase, step: int) -> Validation:
        """Measure the adapter of `base` after a step. All processes must call it, and all get the same result."""
        if not self._encoded:
            self._encoded = list(self._encode(base))
        # Each process fills in its share of the rows.
        losses = torch.zeros(len(self), 3, device=base.sigmas.device)
        for part in self._encoded:
            losses[part.numbers] = self._losses(base, part)
        right, other, none = (self._processes.average(losses) * self._processes.count).double().unbind(1)
        gaps = other - right
        error = float(gaps.std()) / len(self) ** 0.5
        return Validation(step, float(right.mean()), float(other.mean()), float(none.mean()), error)

    def _encode(self, base: FrozenBase) -> Iterator[_Encoded]:
        """This process's share."""
        count = len(self)
        share = range(self._processes.index, count, self._processes.count)
        for start in range(0, len(share), self._together):
            numbers = share[start : start + self._together]
            own = collate([(number, self._triplets.plain(number, self._resolution)) for number in numbers])
            # Half the list away: its neighbours may show the same subject.
            away = [(number + count // 2) % count for number in numbers]
            others = collate([(number, self._triplets.plain(number, self._resolution)) for number in away])
            yield _Encoded(
                torch.tensor(numbers),
                base.encode_images(own.targets, own.target_keys),
                base.encode_images(own.references, own.reference_keys),
                base.encode_images(others.references, others.reference_keys),
                base.encode_prompts(own.prompts),
            )

    def _losses(self, base: FrozenBase, part: _Encoded) -> torch.Tensor:
        """(triplets, 3): with the right reference, another's, and none."""
        latents, steps = part.latents, len(base.sigmas)
        _, noise, reference_noise = sample_noise(part.numbers.tolist(), latents.shape[1:], steps, self._settings.seed)
        noise, reference_noise = noise.to(latents.device), reference_noise.to(latents.device)
        # Evenly spread, so that few triplets say as much as many at random timesteps.
        timesteps = ((part.numbers + 0.5) / len(self) * steps).long().to(latents.device)
        caches = [base.cache(references, reference_noise) for references in (part.references, part.others)]
        losses = [
            loss_at(base, latents, timesteps, noise, part.prompts, cache, self._settings.min_snr)
            for cache in (*caches, None)
        ]
        return torch.stack(losses, dim=1)
