"""DreamCache Evaluate: DINO, CLIP-I and CLIP-T of images that a graph has generated."""

from __future__ import annotations

import math
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.evaluation.metrics import (
    METRICS,
    MaskedImage,
    MetricNetworks,
    SubjectMetrics,
    describe_scores,
    mean_scores,
)
from ..dreamcache_core.figures.contact_sheet import contact_sheet
from ..dreamcache_core.io.images import to_image, to_tensor
from ..dreamcache_core.io.text import split_lines
from .host import encoders
from .host.inputs import check_masks, fit_masks, to_rgb
from .schema import TRAINING_CATEGORY

FOLDER = "clip_vision"
NONE = "none"


class DreamCacheEvaluate(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheEvaluate",
            display_name="DreamCache Evaluate",
            category=TRAINING_CATEGORY,
            description="Scores generated images of a subject with the metrics used in papers: DINO, CLIP-I and "
            "CLIP-T.",
            search_aliases=["metrics", "score", "clip score", "dino score", "similarity", "benchmark"],
            inputs=[
                io.Image.Input("image", tooltip="Generated images of the subject. Each image of a batch is scored."),
                io.Image.Input("reference", tooltip="Images of the subject, ideally several photographs."),
                io.Combo.Input(
                    "dino",
                    options=[NONE, *folder_paths.get_filename_list(FOLDER)],
                    default=NONE,
                    tooltip="A DINO network in models/clip_vision, to compare images with references. Papers use DINO "
                    "ViT-S/16.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP from Load CLIP Vision, to compare images with references and with the prompt.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP, including its text projection, from Load CLIP. It "
                    "compares images with the prompt. Checkpoints usually lack the projection.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt the images were generated from: one for all, or one per line for each.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Paint the subject white: one mask for all images, or one for each."
                ),
                io.Mask.Input(
                    "reference_mask",
                    optional=True,
                    tooltip="Paint the subject white: one mask for all references, or one for each. With both masks, "
                    "masked scores leave out the background.",
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="The mean scores, and the networks that computed them."),
                *(
                    io.Float.Output(_name(metric), tooltip=f"Mean {metric} of the images; nan if not computed.")
                    for metric in METRICS
                ),
                io.Image.Output("contact_sheet", tooltip="References and images, each with its scores."),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, dino: str | None) -> bool | str:
        # None: the name comes from another node, and is looked up when that has run.
        if dino in (None, NONE) or folder_paths.get_full_path(FOLDER, dino):
            return True
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        return f"There is no file {dino} in {folders}: put it there, then press R to refresh the list."

    @classmethod
    @override
    def execute(
        cls,
        image: torch.Tensor,
        reference: torch.Tensor,
        dino: str,
        clip_vision: ClipVisionModel | None = None,
        clip: comfy.sd.CLIP | None = None,
        prompt: str = "",
        mask: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        images, references = (
            _masked_images(image, mask, "images"),
            _masked_images(reference, reference_mask, "references"),
        )
        prompts = _prompts(prompt, len(images))
        networks = _metric_networks(dino, clip_vision, clip, prompt)
        metrics = SubjectMetrics(networks, references)
        scores = [metrics.measure(generated, one) for generated, one in zip(images, prompts, strict=True)]
        mean = mean_scores(scores)
        lines = [describe_scores(mean), *(f"{metric}: {text}" for metric, text in networks.descriptions.items())]
        rows = [("reference", masked) for masked in references]
        rows += [(describe_scores(one), masked) for one, masked in zip(scores, images, strict=True)]
        sheet = contact_sheet([[to_image(masked.image)] for _, masked in rows], [label for label, _ in rows], [""])
        return io.NodeOutput(
            "\n".join(lines), *(mean.get(metric, math.nan) for metric in METRICS), to_tensor(sheet).unsqueeze(0)
        )


def _name(metric: str) -> str:
    return metric.lower().replace("-", "_").replace(" ", "_")


def _masked_images(image: torch.Tensor, mask: torch.Tensor | None, what: str) -> list[MaskedImage]:
    if not len(image):
        raise DreamCacheError(f"The batch of {what} is empty: connect at least one.")
    image = to_rgb(image)
    if mask is None:
        return [MaskedImage(pixels) for pixels in image]
    check_masks(mask, len(image), what)
    return [MaskedImage(pixels, subject) for pixels, subject in zip(image, fit_masks(image, mask), strict=True)]


def _prompts(text: str, count: int) -> list[str]:
    lines = split_lines(text) or [""]
    if len(lines) not in (1, count):
        raise DreamCacheError(
            f"There are {len(lines)} lines of prompts for {count} images: write one for all, or one for each."
        )
    return lines * count if len(lines) == 1 else lines


def _metric_networks(
    dino: str, clip_vision: ClipVisionModel | None, clip: comfy.sd.CLIP | None, prompt: str
) -> MetricNetworks:
    if dino == NONE and clip_vision is None:
        raise DreamCacheError("There is no network to score with: choose a DINO, or connect Load CLIP Vision.")
    if clip is not None and clip_vision is None:
        raise DreamCacheError(
            "A CLIP text encoder alone cannot compare images with the prompt: connect Load CLIP Vision too."
        )
    if clip is not None and not prompt.strip():
        raise DreamCacheError("The prompt is empty: write it, or disconnect the CLIP.")
    clip_image = encoders.clip_image_encoder(clip_vision) if clip_vision else None
    return MetricNetworks(
        dino=None if dino == NONE else encoders.load_dino(Path(folder_paths.get_full_path_or_raise(FOLDER, dino))),
        clip_image=clip_image,
        clip_text=encoders.ClipTextEncoder(clip, clip_image) if clip and clip_image else None,
    )
