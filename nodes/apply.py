"""Apply DreamCache: a model that draws the subject of a reference cache."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.adapter.strengths import Strengths
from ..dreamcache_core.reference.cache import ReferenceCache
from .host.base_model import weights_of
from .host.inputs import as_region
from .host.node_text import show_text
from .host.patching.apply import inject
from .host.patching.injection import AnyAdapter, Injection, Rows
from .schema import (
    CATEGORY,
    AdapterType,
    ReferenceCacheType,
    StrengthsType,
    guidance_curve_input,
    rows_input,
    strength_input,
)


class ApplyDreamCache(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyDreamCache",
            display_name="Apply DreamCache",
            category=CATEGORY,
            description="Lets the model look at your subject while it draws. Apply twice for two subjects.",
            search_aliases=["personalize", "subject reference", "ip adapter"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the reference was encoded with."),
                AdapterType.Input("adapter", tooltip="From DreamCache Adapter Loader."),
                ReferenceCacheType.Input(
                    "reference_cache",
                    tooltip="From DreamCache Encode Reference, Combine References or Load Reference Cache.",
                ),
                strength_input(),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in sampling the reference begins to enter. Later leaves the composition to the "
                    "prompt.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in sampling the reference stops entering. Earlier leaves details to the prompt.",
                ),
                io.Float.Input(
                    "image_guidance",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How far to push towards the reference, as CFG pushes towards the prompt. Any value but 1 "
                    "evaluates the model once more at each step.",
                ),
                rows_input(
                    "Which rows of the batch read the reference: those of both prompts, as in training; only those of "
                    "the positive prompt, so that CFG pushes towards the reference too; or only those of the negative."
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="White where the reference enters, grey where it enters less. Of any size; one mask, or "
                    "one for each latent of the batch. Without it the reference enters everywhere.",
                ),
                StrengthsType.Input(
                    "strengths",
                    optional=True,
                    tooltip="From DreamCache Strengths: how much enters at which layers and when. It is multiplied "
                    "with strength.",
                ),
                guidance_curve_input(),
            ],
            outputs=[io.Model.Output("model", tooltip="For a sampler, or for the next Apply DreamCache.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(
        cls,
        model: ModelPatcher,
        adapter: AnyAdapter,
        reference_cache: ReferenceCache,
        strength: float,
        start_percent: float,
        end_percent: float,
        image_guidance: float,
        rows: Rows,
        region: torch.Tensor | None = None,
        strengths: Strengths | None = None,
        guidance_curve: Strengths | None = None,
    ) -> io.NodeOutput:
        injection = Injection(
            adapter=adapter,
            cache=reference_cache,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            image_guidance=image_guidance,
            rows=rows,
            strengths=strengths or Strengths(),
            guidance_curve=(guidance_curve or Strengths()).curve,
            region=as_region(region),
        )
        injected = inject(model, injection)
        warning = reference_cache.compare_weights(weights_of(model))
        if warning is None:
            return io.NodeOutput(injected)
        show_text(cls, warning)
        return io.NodeOutput(injected, ui={"text": [warning]})
