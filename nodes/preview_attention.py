"""DreamCache Preview Attention: which places in the references each part of an image attends to."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.sample
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from typing_extensions import override

from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.figures.attention_sheet import ReferenceAttention, attention_sheet
from ..dreamcache_core.io.images import to_image, to_tensor
from ..dreamcache_core.reference.image import resize_to_area
from ..dreamcache_core.unet import group_of
from .host.base_model import check_vae, encode_images
from .host.inputs import as_region, check_masks, to_rgb
from .host.patching.attention_probe import AttentionProbe, probe_attention
from .host.patching.injection import injections_on
from .schema import CATEGORY


class DreamCachePreviewAttention(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCachePreviewAttention",
            display_name="DreamCache Preview Attention",
            category=CATEGORY,
            description="Shows which parts of your references each part of a finished image attends to, in coarse, "
            "medium and fine layers.",
            search_aliases=["attention map", "heat map", "correspondence", "visualize"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply DreamCache: the model the image was generated with."),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Image.Input(
                    "image",
                    tooltip="The finished image, from VAE Decode or a file. Each image of a batch gets its own sheet.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt the image was generated from. Its areas and masks are ignored."
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Start of the part of sampling to inspect.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="End of the part of sampling to inspect.",
                ),
                io.Int.Input(
                    "noise_levels",
                    default=2,
                    min=1,
                    max=20,
                    tooltip="How many timesteps to inspect, evenly spaced over that part of sampling. The image is "
                    "noised to each timestep; at early ones the model sees little but composition.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of that noise.",
                    advanced=True,
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Paint the part of the image to inspect white. Without a mask, all of it is inspected.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The sheet, one for each image.")],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(
        cls,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        image: torch.Tensor,
        positive: list,
        start_percent: float,
        end_percent: float,
        noise_levels: int,
        seed: int,
        region: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if not injections_on(model):
            raise DreamCacheError(
                "The model uses no reference: connect the model from Apply DreamCache, with a strength above 0."
            )
        if not len(image):
            raise DreamCacheError("The image batch is empty: connect an image.")
        check_vae(vae, model)
        image = resize_to_area(to_rgb(image), 0)
        latent = encode_images(vae, image)
        noise = comfy.sample.prepare_noise(latent, seed)
        region = as_region(region)
        if region is not None:
            check_masks(region, len(image))
        attention: list[list[ReferenceAttention]] = [[] for _ in image]
        bar = comfy.utils.ProgressBar(noise_levels)
        for level in range(noise_levels):
            progress = start_percent + (end_percent - start_percent) * (level + 0.5) / noise_levels
            probe = probe_attention(model, latent, noise, positive, progress, region)
            for latent_index, of_image in enumerate(attention):
                of_image += _reference_attention(model, probe, latent_index, f"{progress:.0%} of sampling")
            bar.update(1)
        groups = {
            layer.name: group_of(layer, injection.cache.layers)
            for injection in injections_on(model)
            for layer in injection.layers
        }
        sheets = [
            to_tensor(attention_sheet(to_image(pixels), of_image, groups))
            for pixels, of_image in zip(image, attention, strict=True)
        ]
        sheet = torch.stack(sheets)
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _reference_attention(
    model: ModelPatcher, probe: AttentionProbe, latent_index: int, noise_level: str
) -> Iterator[ReferenceAttention]:
    """The attention of one latent of the batch to each of its references. `noise_level`: in words, for labels."""
    injections = injections_on(model)
    for position, injection in enumerate(injections, start=1):
        finest = injection.layers[-1].name
        references = list(zip(injection.cache.images, injection.cache.kept(finest), strict=True))
        indices = [latent_index] if injection.cache.per_latent else range(len(references))
        maps = probe.maps(injection, latent_index) or [{} for _ in indices]
        for index, maps_by_layer in zip(indices, maps, strict=True):
            label = [noise_level]
            if len(injections) > 1:
                label.append(f"Apply DreamCache {position}")
            if len(references) > 1:
                label.append(f"reference {index + 1}")
            yield ReferenceAttention(", ".join(label), *references[index], maps_by_layer)
