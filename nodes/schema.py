"""What the schemas of nodes share: io types, categories and inputs. Their names are in saved workflows."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from .host.adapters import adapter_names
from .host.patching.injection import Rows

CATEGORY = "DreamCache"
TRAINING_CATEGORY = "DreamCache/training"

ReferenceCacheType = io.Custom("DREAMCACHE_REFERENCE_CACHE")
StrengthsType = io.Custom("DREAMCACHE_STRENGTHS")
AdapterType = io.Custom("DREAMCACHE_ADAPTER")
# ComfyUI's own type, which older versions don't have.
CurveType = io.Custom("CURVE")


def adapter_name_input() -> io.Combo.Input:
    return io.Combo.Input(
        "adapter_name",
        options=adapter_names(),
        tooltip="Choose a file in models/dreamcache that was trained for your model's family. Or choose none: the "
        "model's own attention then uses the reference, with any SD1.x, SD2.x or SDXL checkpoint.",
    )


def strength_input() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.05,
        tooltip="How strongly the reference affects the image. 0 = not at all; 1 = as trained.",
    )


def rows_input(tooltip: str, *, optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "rows", options=list(get_args(Rows)), default="both", optional=optional, tooltip=tooltip, advanced=True
    )


def guidance_curve_input() -> io.Input:
    return StrengthsType.Input(
        "guidance_curve",
        optional=True,
        tooltip="From DreamCache Strengths: its curve scales the extra image guidance over sampling. Where the curve "
        "is 0, guidance is off and costs nothing. Layer factors have no effect here.",
    )
