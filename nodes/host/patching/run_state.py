"""The state of a sampling run: what the injections need to know of it, and what they keep until it ends."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import torch

from ....dreamcache_core.adapter.network import Attention
from ....dreamcache_core.adapter.strengths import Curve, at_progress
from ....dreamcache_core.errors import DreamCacheError
from ....dreamcache_core.reference.masks import resize_mask
from .injection import Injection
from .options import KEY, RUN_KEY, Options

# How many points of a curve over sampling are looked up.
_CURVE_POINTS = 257


@dataclass(frozen=True, eq=False)
class CurveBySigma:
    """The factors of a curve by sigma, on the sampler's device, so that no step waits to transfer its sigma.

    `factors`: (points,), from the end of sampling to its start. `borders`: (points - 1,), the sigmas between them,
    rising.
    """

    factors: torch.Tensor
    borders: torch.Tensor

    @classmethod
    def of(cls, curve: Curve, sampling: Any, device: torch.device) -> CurveBySigma:
        """`sampling`: the model's `model_sampling`."""
        progress = np.linspace(1, 0, _CURVE_POINTS)
        # ComfyUI's sigmas of exactly 0 % and 100 % lie outside of every schedule.
        sigmas = torch.tensor([sampling.percent_to_sigma(float(done)) for done in progress.clip(1e-6, 1 - 1e-6)])
        factors = torch.tensor(at_progress(curve, progress), dtype=torch.float32)
        return cls(factors.to(device), ((sigmas[1:] + sigmas[:-1]) / 2).to(device))

    def at(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.factors[torch.searchsorted(self.borders, sigma)]


@dataclass(frozen=True, eq=False)
class CachedKeysValues:
    """The keys and values of a reference cache at one adapter layer: (rows, tokens, channels) each.

    `bias`: added to the attention logits, (rows, 1, tokens), or None. `sigma`: the noise level that they are for, None
    if they serve every step.
    """

    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None
    sigma: float | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> CachedKeysValues:
        """The same with `change` applied to each tensor."""
        bias = None if self.bias is None else change(self.bias)
        return CachedKeysValues(change(self.key), change(self.value), bias, self.sigma)


class AttentionObserver(Protocol):
    """Something that looks on while image tokens attend to a reference."""

    def observe(
        self,
        attention: Attention,
        injection: Injection,
        layer: str,
        cached_tokens: int,
        rows: slice,
        x: torch.Tensor,
        options: Options,
    ) -> Attention:
        """The same attention function, observed. `x`: image tokens of all rows; `rows`: those that attend. The first
        `cached_tokens` keys are the references', any others the image tokens' own.
        """
        ...


@dataclass(frozen=True, eq=False)
class RunState:
    """The state of one sampling run, and of the evaluation of the model that takes place in it.

    Of the run:
    `conditioned`: the prompts that are not negative. `areas`: (height, width, top, left) in latent pixels of the
    prompts that have an area. `latent_size`: (height, width). `curves`: by sigma. `ranges`: smallest and largest sigma
    of the injections that are active in a part of sampling only. `weights`: of the U-Net. `keys_values`, `regions`:
    what layers have computed from reference caches and masks, kept until the run ends.

    Of the evaluation:
    `inactive`: injections that have no part in it. `without_reference`: prompts whose rows attend to no reference.
    `image_guidance`: s_image of each injection. `observer`: of attention. `sigma`: the noise level, None where
    it is unknown.
    """

    conditioned: frozenset[UUID] = frozenset()
    areas: Mapping[UUID, tuple[int, int, int, int]] = field(default_factory=dict)
    latent_size: tuple[int, int] = (0, 0)
    curves: Mapping[Curve, CurveBySigma] = field(default_factory=dict)
    ranges: Mapping[Injection, tuple[float, float]] = field(default_factory=dict)
    weights: Hashable = None
    keys_values: dict[tuple[Any, ...], CachedKeysValues] = field(default_factory=dict)
    regions: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    inactive: frozenset[Injection] = frozenset()
    without_reference: frozenset[UUID] = frozenset()
    image_guidance: Mapping[Injection, float] = field(default_factory=dict)
    observer: AttentionObserver | None = None
    sigma: float | None = None

    def attends(self, injection: Injection, prompt: UUID) -> bool:
        """Whether the rows of a prompt attend to the injection's reference."""
        if prompt in self.without_reference:
            return False
        return injection.rows == "both" or (prompt in self.conditioned) == (injection.rows == "conditioned")

    def region(self, mask: torch.Tensor, x: torch.Tensor, options: Options) -> torch.Tensor:
        """A region as a factor of image tokens `x`: (batch, tokens, 1). A prompt with an area gets that part of it."""
        size = tuple(options["activations_shape"][-2:])
        areas = tuple(self.areas.get(uuid) for uuid in options["uuids"])
        key = (id(mask), areas, size, len(x), tuple(_window(options)), x.device, x.dtype)
        if key not in self.regions:
            mask = mask.to(x.device)
            if len(mask) > 1:
                mask = rows_of_latents(mask, x, options)
            rows = []
            for area in areas:
                part = mask
                if area:
                    height, width, top, left = area
                    part = resize_mask(mask, *self.latent_size)[:, top : top + height, left : left + width]
                rows.append(resize_mask(part, *size).expand(len(x) // len(areas), -1, -1))
            self.regions[key] = torch.cat(rows).flatten(1).unsqueeze(-1).to(x)
        return self.regions[key]


def rows_of_latents(rows: torch.Tensor, x: torch.Tensor, options: Options) -> torch.Tensor:
    """The rows of a tensor with one for each latent that belong to the latents evaluated now.

    These are all of the batch, or those of a context window. `x`: image tokens, (prompts · latents, tokens, channels).
    Raises DreamCacheError if they can't be told.
    """
    evaluated, window = len(x) // max(1, len(options.get("uuids", ()))), _window(options)
    if len(rows) == evaluated:
        return rows
    if not window or len(window) != evaluated:
        raise DreamCacheError(
            f"Another node evaluates {evaluated} latents at a time where the batch has {len(rows)}, and doesn't say "
            "which: connect one reference and one region for all latents, or remove that node."
        )
    return rows[window]


def _window(options: Options) -> list[int]:
    """The numbers of the latents in ComfyUI's context window over the batch, empty if there is none."""
    window = options.get("context_window")
    if window is None or window.dim != 0:
        return []
    anchor = getattr(window, "causal_anchor_index", None)
    return [*([] if anchor is None else [anchor]), *window.index_list]


def run_state(options: Options) -> RunState:
    """The RunState in transformer_options; where there is none, one in which every injection is active."""
    return options.get(RUN_KEY) or RunState()


def active_injections(options: Options) -> tuple[Injection, ...]:
    """The injections that have a part in this evaluation."""
    inactive = run_state(options).inactive
    return tuple(injection for injection in options.get(KEY, ()) if injection not in inactive)
