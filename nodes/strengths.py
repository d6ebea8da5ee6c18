"""DreamCache Strengths: how strongly a reference enters at which layers, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.adapter.strengths import CURVES, LIST, MAX_STRENGTH, Strengths, make_curve
from ..dreamcache_core.io.finite import check_finite
from .schema import CATEGORY, CurveType, StrengthsType

_CURVE_POINTS = 257
"""At which a curve that was drawn is read."""


class DreamCacheStrengths(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheStrengths",
            display_name="DreamCache Strengths",
            category=CATEGORY,
            description="Sets how strongly the reference applies at coarse and fine layers, and how that changes "
            "during sampling.",
            search_aliases=["weight type", "weight schedule", "layer weights", "style and composition"],
            inputs=[
                _factor("bottleneck", "Strength in the middle block (1/64 of the image size): what the image shows."),
                _factor("coarse", "Strength in decoder layers at 1/32 of the image size: composition and shape."),
                _factor("medium", "Strength in decoder layers at 1/16 of the image size: parts of the subject."),
                _factor("fine", "Strength in decoder layers at 1/8 of the image size: texture and colour."),
                io.Combo.Input(
                    "over_sampling",
                    options=[*CURVES, LIST],
                    default="constant",
                    tooltip="How the strength changes from the start to the end of sampling: constant, rising from 0, "
                    "falling to 0, or following the list in values.",
                ),
                io.String.Input(
                    "values",
                    default="1, 1, 0.5, 0",
                    tooltip="List of strengths from 0 to 2, evenly spaced from the start to the end of sampling and "
                    "joined by straight lines.",
                ),
                CurveType.Input(
                    "curve",
                    optional=True,
                    # Else the front end would put its curve editor on the node, which always has a curve.
                    extra_dict={"forceInput": True},
                    tooltip="From Curve Editor. Replaces over_sampling; the left end is the start of sampling.",
                ),
            ],
            outputs=[StrengthsType.Output("strengths", tooltip="For Apply DreamCache.")],
        )

    @classmethod
    @override
    def execute(
        cls,
        bottleneck: float,
        coarse: float,
        medium: float,
        fine: float,
        over_sampling: str,
        values: str,
        curve: Any = None,
    ) -> io.NodeOutput:
        if curve is not None:
            factors = tuple(float(curve.interp(x)) for x in np.linspace(0, 1, _CURVE_POINTS))
            check_finite(torch.tensor(factors), "The curve", "draw another")
        else:
            factors = make_curve(over_sampling, values)
        return io.NodeOutput(Strengths(bottleneck, coarse, medium, fine, curve=factors))


def _factor(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=1.0, min=0.0, max=MAX_STRENGTH, step=0.05, tooltip=tooltip)
