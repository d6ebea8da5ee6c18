"""DreamCache Guider: the paper's guidance in three terms, for SamplerCustomAdvanced."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.adapter.strengths import Strengths
from .host.patching.guidance import Guider
from .schema import CATEGORY, guidance_curve_input


class DreamCacheGuider(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheGuider",
            display_name="DreamCache Guider",
            category=CATEGORY,
            description="Guides sampling towards the prompt and towards your subject, each with its own weight.",
            search_aliases=["image guidance", "subject guidance", "dual cfg", "cfg guider"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply DreamCache. The image_guidance set there is ignored."),
                io.Conditioning.Input("positive", tooltip="What to generate."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far to push from the negative prompt towards the positive.",
                ),
                io.Float.Input(
                    "image_guidance",
                    default=1.5,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How far to push from the image without the reference towards the image with it. 1 = no "
                    "extra guidance; any other value takes three model evaluations per step instead of two.",
                ),
                guidance_curve_input(),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @override
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        cfg: float,
        image_guidance: float,
        guidance_curve: Strengths | None = None,
    ) -> io.NodeOutput:
        guider = Guider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        guider.image_guidance = image_guidance
        guider.guidance_curve = (guidance_curve or Strengths()).curve
        return io.NodeOutput(guider)
