"""DreamCache Compare: a table of images, one for each combination of several settings' values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from PIL import Image
from typing_extensions import override

from ..dreamcache_core.adapter.strengths import Strengths
from ..dreamcache_core.figures.comparison import make_comparison, parse_values
from ..dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet
from ..dreamcache_core.generation import GenerationSettings
from ..dreamcache_core.io.images import to_image, to_tensor
from ..dreamcache_core.reference.cache import ReferenceCache
from .host.base_model import check_vae
from .host.generation import generate, inject_reference
from .host.inputs import as_region
from .host.node_text import show_text
from .host.patching.injection import AnyAdapter, Rows
from .schema import CATEGORY, AdapterType, ReferenceCacheType, StrengthsType, rows_input

# The settings that can be compared: name → (default, minimum, maximum, whether whole, the tooltip's beginning).
_COMPARED: dict[str, tuple[str, float, float, bool, str]] = {
    "strength": ("0, 0.5, 1", 0, 2, False, "How strongly the reference affects the image."),
    "image_guidance": ("1, 2", 0, 10, False, "How far to push towards the reference."),
    "seed": ("0", 0, 2**64 - 1, True, "Seed of the noise."),
    "cfg": ("7", 0, 100, False, "How far to push towards the prompt."),
    "start_percent": ("0", 0, 1, False, "When the reference starts to apply."),
    "end_percent": ("1", 0, 1, False, "When the reference stops applying."),
    "steps": ("20", 1, 10_000, True, "Number of sampling steps."),
}


class DreamCacheCompare(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheCompare",
            display_name="DreamCache Compare",
            category=CATEGORY,
            description="Generates an image for every combination of the settings you list and shows them in one "
            "table.",
            search_aliases=["xy plot", "grid", "contact sheet", "strength sweep"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A model without Apply DreamCache: this node applies it for each image."
                ),
                AdapterType.Input("adapter", tooltip="From DreamCache Adapter Loader."),
                ReferenceCacheType.Input("reference_cache", tooltip="The reference, as for Apply DreamCache."),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Conditioning.Input("positive", tooltip="What to generate."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Latent.Input("latent_image", tooltip="As in KSampler: an empty latent, or an image to start from."),
                *(
                    io.String.Input(
                        name,
                        default=default,
                        tooltip=f"{what} Enter one number, or several separated by commas to compare them.",
                        advanced=name in ("start_percent", "end_percent"),
                    )
                    for name, (default, _, _, _, what) in _COMPARED.items()
                ),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="As in KSampler: a lower value keeps more of the latent.",
                    advanced=True,
                ),
                io.Int.Input(
                    "cell_size",
                    default=256,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Size of each image in the table, in pixels.",
                ),
                rows_input("As in Apply DreamCache.", optional=True),
                io.Mask.Input("region", optional=True, tooltip="As in Apply DreamCache: where the reference applies."),
                StrengthsType.Input("strengths", optional=True, tooltip="From DreamCache Strengths."),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="The table, labelled with the settings."),
                io.Image.Output("images", tooltip="All images at full size, row by row."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(
        cls,
        model: ModelPatcher,
        adapter: AnyAdapter,
        reference_cache: ReferenceCache,
        vae: comfy.sd.VAE,
        positive: list,
        negative: list,
        latent_image: dict[str, Any],
        sampler_name: str,
        scheduler: str,
        denoise: float,
        cell_size: int,
        rows: Rows = "both",
        region: torch.Tensor | None = None,
        strengths: Strengths | None = None,
        **compared: str,
    ) -> io.NodeOutput:
        check_vae(vae, model)
        comparison = make_comparison(
            {
                name: parse_values(name, compared[name], low, high, whole)
                for name, (_, low, high, whole, _) in _COMPARED.items()
            }
        )
        shared = GenerationSettings(sampler=sampler_name, scheduler=scheduler, denoise=denoise)
        table = [[_effective(shared, {**row, **column}) for column in comparison.columns] for row in comparison.rows]
        fields = {
            "rows": rows,
            "region": as_region(region),
            "strengths": strengths or Strengths(),
        }
        batch = len(latent_image["samples"])
        labels = [
            f"{label} image {number}" if batch > 1 else label
            for label in comparison.row_labels
            for number in range(1, batch + 1)
        ]

        def sheet() -> Image.Image:
            """The table so far. Each latent of the batch has a row of its own."""
            cells = [
                [to_image(generated[settings][index]) if settings in generated else None for settings in row]
                for row in table
                for index in range(batch)
            ]
            sections = [
                Section(label, [Tile(*each) for each in zip(comparison.column_labels, row, strict=True)])
                for label, row in zip(labels, cells, strict=True)
            ]
            return TileSheet("", sections, len(comparison.columns), cell_size).draw()

        generated: dict[GenerationSettings, torch.Tensor] = {}
        different = list(dict.fromkeys(settings for row in table for settings in row))
        bar = comfy.utils.ProgressBar(sum(settings.steps for settings in different))
        for number, settings in enumerate(different, start=1):
            show_text(cls, f"image {number} of {len(different)}")
            injected = inject_reference(model, adapter, reference_cache, settings, **fields)
            generated[settings] = generate(
                injected, vae, positive, negative, latent_image, settings, callback=lambda *_: bar.update(1)
            )
            bar.update_absolute(bar.current, preview=("JPEG", sheet(), None))
        grid = to_tensor(sheet()).unsqueeze(0)
        images = torch.cat([generated[settings] for row in table for settings in row])
        return io.NodeOutput(grid, images, ui=ui.PreviewImage(grid, cls=cls))


def _effective(shared: GenerationSettings, values: dict[str, Any]) -> GenerationSettings:
    """`shared` with these values. At a strength of 0, values without effect are reset, so that cells with the same
    image share their settings and the image is generated once.
    """
    settings = replace(shared, **values)
    if settings.strength:
        return settings
    return replace(settings, image_guidance=1.0, start_percent=0.0, end_percent=1.0)
