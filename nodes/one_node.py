"""DreamCache: Encode Reference, Adapter Loader and Apply DreamCache in one box."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder
from typing_extensions import override

from .host.adapters import adapter_fingerprint, check_adapter
from .host.reference import TIMESTEP
from .schema import CATEGORY, adapter_name_input, strength_input

# A wire of the graph: the number of a node and of its output.
Link = list[str | int]


class DreamCacheOneNode(io.ComfyNode):
    """Puts the three nodes into the graph while it runs. They get the wires as they are, not what comes through them,
    by which ComfyUI knows that a reference has been encoded when only the strength has changed.
    """

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheOneNode",
            display_name="DreamCache",
            category=CATEGORY,
            description="Makes a model that generates your subject from one image of it, all in one node.",
            search_aliases=["personalize", "subject reference", "ip adapter", "one node", "unified loader"],
            inputs=[
                io.Model.Input("model", raw_link=True, tooltip="The model you generate with: SD1.x, SD2.x or SDXL."),
                io.Vae.Input("vae", raw_link=True, tooltip="The VAE of that model."),
                io.Clip.Input(
                    "clip",
                    raw_link=True,
                    tooltip="The CLIP of that model. The reference is encoded with an empty prompt.",
                ),
                io.Image.Input(
                    "image",
                    raw_link=True,
                    tooltip="An image of your subject, ideally alone and large in the frame. Each image of a batch "
                    "becomes a reference.",
                ),
                adapter_name_input(),
                strength_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    raw_link=True,
                    tooltip="Paint your subject white. It is cut out, centred on white and cropped with a margin, as "
                    "in training. Connect one mask, or one for each image.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="For a sampler.")],
            enable_expand=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, adapter_name: str) -> bool | str:
        return check_adapter(adapter_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, adapter_name: str, **others: object) -> str:
        return adapter_fingerprint(adapter_name)

    @classmethod
    @override
    def execute(
        cls,
        model: Link,
        vae: Link,
        clip: Link,
        image: Link,
        adapter_name: str,
        strength: float,
        mask: Link | None = None,
    ) -> io.NodeOutput:
        graph = GraphBuilder()
        adapter = graph.node("DreamCacheAdapterLoader", adapter_name=adapter_name)
        reference = graph.node(
            "DreamCacheEncodeReference",
            **{"model": model, "vae": vae, "image": image, "clip": clip, "mask": mask},
            **{"timestep": TIMESTEP, "seed": 0, "resolution": 512},
        )
        applied = graph.node(
            "ApplyDreamCache",
            **{"model": model, "adapter": adapter.out(0), "reference_cache": reference.out(0)},
            **{"strength": strength, "start_percent": 0.0, "end_percent": 1.0, "image_guidance": 1.0, "rows": "both"},
        )
        return io.NodeOutput(applied.out(0), expand=graph.finalize())
