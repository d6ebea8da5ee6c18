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
            description="Makes the model use your reference while it generates. For two subjects, chain two of these "
            "nodes.",
            search_aliases=["personalize", "subject reference", "ip adapter"],
            inputs=[
                io.Model.Input("model", tooltip="The model you encoded the reference with."),
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
                    tooltip="When the reference starts to apply: 0 = first step, 1 = end of sampling. Start later to "
                    "leave the composition to the prompt.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When the reference stops applying. Stop earlier to leave details to the prompt.",
                ),
                io.Float.Input(
                    "image_guidance",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How far to push towards the reference, as CFG pushes towards the prompt. 1 = no extra "
                    "guidance; any other value costs one more model evaluation per step.",
                ),
                rows_input(
                    "Which prompts use the reference. both: as in training. conditioned: only the positive prompt, so "
                    "CFG also pushes towards the reference. unconditioned: only the negative prompt."
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Where the reference applies: white = fully, grey = less, black = not at all. Any size; "
                    "one mask, or one for each latent of the batch. Without a mask it applies everywhere.",
                ),
                StrengthsType.Input(
                    "strengths",
                    optional=True,
                    tooltip="From DreamCache Strengths: strength for each group of layers and over sampling. It is "
                    "multiplied by strength.",
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
        warnings = [reference_cache.compare_weights(weights_of(model)), _range_warning(start_percent, end_percent)]
        text = "\n".join(warning for warning in warnings if warning)
        if not text:
            return io.NodeOutput(injected)
        show_text(cls, text)
        return io.NodeOutput(injected, ui={"text": [text]})


def _range_warning(start_percent: float, end_percent: float) -> str | None:
    if start_percent <= end_percent:
        return None
    return (
        f"The reference never applies, because start_percent ({start_percent:g}) is above end_percent "
        f"({end_percent:g}): swap them."
    )
