"""DreamCache Save Triplet: a picture, its prompt and its subject's mask become a sample to train on."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.io.images import to_image
from ..dreamcache_core.io.names import typed_path
from ..dreamcache_core.reference.image import how_bright, subject_box
from ..dreamcache_core.training.triplet_files import save_triplet
from .host.folders import is_inside, output_folder
from .host.inputs import check_masks, fit_masks, to_rgb
from .host.node_text import show_text
from .schema import TRAINING_CATEGORY


class DreamCacheSaveTriplet(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheSaveTriplet",
            display_name="DreamCache Save Triplet",
            category=TRAINING_CATEGORY,
            description="Saves an image, its prompt and its subject's mask as a training sample.",
            search_aliases=["save image", "save dataset", "training data", "export dataset"],
            inputs=[
                io.Image.Input("image", tooltip="Image of a subject. Each image of a batch becomes a sample."),
                io.Mask.Input("mask", tooltip="Paint the subject white: one mask for each image."),
                io.String.Input("prompt", force_input=True, tooltip="The prompt the image was generated from."),
                io.String.Input(
                    "folder",
                    default="dreamcache_triplets/my_subjects",
                    tooltip="Folder in ComfyUI's output folder. New samples are added to those already there.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Another image of the same subject, which training uses instead of the cut-out. Connect "
                    "one, or one for each image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, folder: str | None) -> bool | str:
        # None: the name comes from another node.
        return True if folder is None or is_inside(output_folder(), str(typed_path(folder))) else _outside(folder)

    @classmethod
    @override
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor,
        prompt: str,
        folder: str,
        reference: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        relative = typed_path(folder)
        if not is_inside(output_folder(), str(relative)):
            raise DreamCacheError(_outside(folder))
        if not prompt.strip():
            raise DreamCacheError("The prompt is empty: connect the text the image was generated from.")
        _check_counts(image, mask, reference)
        output = output_folder()
        saved, skipped = _save(output / relative, image, mask, prompt, reference)
        text = _in_words(saved, skipped)
        show_text(cls, text)
        images = [
            {"filename": path.name, "subfolder": path.parent.relative_to(output).as_posix(), "type": "output"}
            for path in saved
        ]
        return io.NodeOutput(ui={"images": images, "text": [text]})


def _outside(folder: str) -> str:
    return (
        f'"{folder}" is not a folder in ComfyUI\'s output folder: use a name such as dreamcache_triplets/my_subjects.'
    )


def _check_counts(image: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor | None) -> None:
    if not len(image):
        raise DreamCacheError("The image batch is empty: connect an image.")
    check_masks(mask, len(image), one_for_all=False)
    if reference is not None and len(reference) not in (1, len(image)):
        raise DreamCacheError(
            f"There are {len(reference)} references for {len(image)} images: connect one for all, or one for each "
            "image."
        )


def _save(
    folder: Path, image: torch.Tensor, mask: torch.Tensor, prompt: str, reference: torch.Tensor | None
) -> tuple[list[Path], list[str]]:
    """Write the samples. Returns their pictures' paths, and a sentence for each picture whose mask shows no subject.

    Those are left out rather than refused: one failure of the background's removal would stop a night's queue.
    """
    saved, skipped = [], []
    image, mask = to_rgb(image), fit_masks(image, mask)
    references = None if reference is None else to_rgb(reference, "reference").expand(len(image), -1, -1, -1)
    for number, (picture, subject) in enumerate(zip(image, mask, strict=True)):
        if subject_box(subject) is None:
            skipped.append(f"Image {number + 1} was not saved because its mask is {how_bright(subject)}.")
            continue
        pictures = {"generation": to_image(picture), "mask": to_image(subject)}
        if references is not None:
            pictures["reference"] = to_image(references[number])
        saved.append(save_triplet(folder, pictures, prompt))
    return saved, skipped


def _in_words(saved: list[Path], skipped: list[str]) -> str:
    names = [f"{path.parent.name}/{path.stem.removesuffix('_generation')}" for path in saved]
    sentences = [f"Saved {' … '.join(dict.fromkeys([names[0], names[-1]]))}."] if names else []
    return "\n".join([*sentences, *skipped])
