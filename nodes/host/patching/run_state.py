"""The state of a sampling run: what the injections need to know of it, and what they keep until it ends."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
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
from .layout import Layout
from .options import KEY, RUN_KEY, Options

# How many points of a curve over sampling are looked up.
_CURVE_POINTS = 257

# Height, width, top and left of a prompt's area, in latent pixels.
Area = tuple[int, int, int, int]


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
    prompts that have an area. `curves`: by sigma. `ranges`: smallest and largest sigma of the injections that are
    active in a part of sampling only. `weights`: of the U-Net. `keys_values`, `regions`: what layers have computed from
    reference caches and masks, kept until the run ends.

    Of the step:
    `latents`: those it began with, (batch, channels, height, width), and `timestep`, their sigmas, (batch,).

    Of the evaluation:
    `layout`: of its rows; None: prompt by prompt, each with all latents, or those of ComfyUI's context window, and
    entire, or the prompt's area of them. `inactive`: injections that have no part in it. `without_reference`: prompts
    whose rows attend to no reference. `image_guidance`: s_image of each injection. `observer`: of attention. `sigma`:
    the noise level, None where it is unknown.
    """

    conditioned: frozenset[UUID] = frozenset()
    areas: Mapping[UUID, Area] = field(default_factory=dict)
    curves: Mapping[Curve, CurveBySigma] = field(default_factory=dict)
    ranges: Mapping[Injection, tuple[float, float]] = field(default_factory=dict)
    weights: Hashable = None
    keys_values: dict[tuple[Any, ...], CachedKeysValues] = field(default_factory=dict)
    regions: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    latents: torch.Tensor | None = None
    timestep: torch.Tensor | None = None
    layout: Layout | None = None
    inactive: frozenset[Injection] = frozenset()
    without_reference: frozenset[UUID] = frozenset()
    image_guidance: Mapping[Injection, float] = field(default_factory=dict)
    observer: AttentionObserver | None = None
    sigma: float | None = None

    def is_usual(self, x: torch.Tensor, options: Options) -> bool:
        """Whether the U-Net's input has the rows and the size that ComfyUI gives it, so that its `layout` is None."""
        assert self.latents is not None
        uuids, size = options.get("uuids", ()), tuple(x.shape[-2:])
        if any((self.areas.get(uuid) or self.latents.shape[-2:])[:2] != size for uuid in uuids):
            return False
        return len(x) in (len(uuids) * len(self.latents), len(uuids) * len(_window(options)))

    def attends(self, injection: Injection, prompt: UUID) -> bool:
        """Whether the rows of a prompt attend to the injection's reference."""
        if prompt in self.without_reference:
            return False
        return injection.rows == "both" or (prompt in self.conditioned) == (injection.rows == "conditioned")

    def region(self, mask: torch.Tensor, x: torch.Tensor, options: Options) -> torch.Tensor:
        """A region as a factor of image tokens `x`: (rows, tokens, 1). Tiles, and prompts with an area, get their part
        of it.

        Raises DreamCacheError if the part can't be told.
        """
        size = tuple(options["activations_shape"][-2:])
        areas = tuple(self.areas.get(uuid) for uuid in options["uuids"])
        key = (id(mask), areas, self.layout, size, len(x), tuple(_window(options)), x.device, x.dtype)
        if key not in self.regions:
            mask = mask.to(x.device)
            if len(mask) > 1:
                mask = rows_of_latents(mask, x, options)
            parts = self._parts_of_areas(mask, areas) if self.layout is None else self._parts_of_tiles(mask, len(x))
            rows = [resize_mask(part, *size).expand(len(x) // len(parts), -1, -1) for part in parts]
            self.regions[key] = torch.cat(rows).flatten(1).unsqueeze(-1).to(x)
        return self.regions[key]

    def _parts_of_areas(self, mask: torch.Tensor, areas: Sequence[Area | None]) -> list[torch.Tensor]:
        """The part of a mask for each prompt."""
        parts = []
        for area in areas:
            part = mask
            if area:
                height, width, top, left = area
                part = self._at_latents(mask)[:, top : top + height, left : left + width]
            parts.append(part)
        return parts

    def _parts_of_tiles(self, mask: torch.Tensor, rows: int) -> list[torch.Tensor]:
        """The part of a mask for each row. `mask`: one, or one for each row."""
        assert self.layout
        height, width = self.layout.size
        if len(self.layout.places) != rows:
            raise DreamCacheError(
                f"Another node evaluates parts of {height} × {width} of the latents and doesn't say where they lie: "
                "disconnect region from Apply DreamCache, or remove that node."
            )
        masks = self._at_latents(mask).expand(rows, -1, -1)
        # A tile may reach over an edge to the other side.
        return [
            torch.roll(of_row, (-place.top, -place.left), (0, 1))[None, :height, :width]
            for of_row, place in zip(masks, self.layout.places, strict=True)
        ]

    def _at_latents(self, mask: torch.Tensor) -> torch.Tensor:
        """Masks at the size of the step's latents."""
        assert self.latents is not None
        return resize_mask(mask, self.latents.shape[-2], self.latents.shape[-1])

    def prompts(self, rows: int, options: Options) -> list[UUID]:
        """The prompt of each row of an evaluation.

        Raises DreamCacheError if it can't be told.
        """
        uuids = options["uuids"]
        if self.layout is None:
            return [uuid for uuid in uuids for _ in range(rows // len(uuids))]
        if len(self.layout.prompts) != rows:
            raise DreamCacheError(
                "Another node evaluates parts of the latents in an order of its own, so that positive and negative "
                "prompts can't be told apart: set rows to both and use no DreamCache Guider, or remove that node."
            )
        return [uuids[number] for number in self.layout.prompts]


def rows_of_latents(rows: torch.Tensor, x: torch.Tensor, options: Options) -> torch.Tensor:
    """The rows of a tensor with one for each latent that belong to the latents evaluated now: one for each latent of a
    prompt, or one for each row of `x` where these are parts of latents.

    `x`: image tokens, (rows, tokens, channels). Raises DreamCacheError if they can't be told.
    """
    layout = run_state(options).layout
    if layout is not None and len(layout.places) == len(x):
        return rows[[place.latent for place in layout.places]]
    evaluated, window = len(x) // max(1, len(options.get("uuids", ()))), _window(options)
    if layout is None and len(rows) == evaluated:
        return rows
    if layout is not None or len(window) != evaluated:
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
