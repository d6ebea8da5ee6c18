"""Evaluate an adapter from the command line, on a folder of subjects such as DreamBooth's dataset:

    python -m dreamcache_core.evaluate draw --comfyui ~/ComfyUI --checkpoint sd15.safetensors \\
        --adapter adapter.safetensors --subjects dreambooth/dataset --pictures drawn
    python -m dreamcache_core.evaluate measure --comfyui ~/ComfyUI --subjects dreambooth/dataset --pictures drawn \\
        --clip clip-vit-large-patch14.safetensors --dino dino_deitsmall16_pretrain.pth

The second measures pictures that were made elsewhere as well. `--help` after `draw` or `measure` lists the settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .adapter.file import load_adapter
from .errors import DreamCacheError
from .evaluation.generated_images import GeneratedImage, plan_images, save_image
from .evaluation.measurement import measure_images
from .evaluation.metrics import MetricNetworks
from .evaluation.results import save_evaluation, to_table
from .evaluation.subjects import Subject, load_masked_image, open_subjects
from .io.tensor_file import name_and_hash
from .reference.image import subject_on_white
from .train import import_pack


def main() -> None:
    options = _options()
    pack = import_pack(options.comfyui, options.cpu or not torch.cuda.is_available())
    # The pack's copy of this module, for the nodes use the pack's copy of the core.
    importlib.import_module(f"{pack.__name__}.dreamcache_core.evaluate").evaluate(options)


def evaluate(options: argparse.Namespace) -> None:
    """The command, in the pack as ComfyUI imports it. What goes wrong ends it with a sentence."""
    try:
        {"draw": _draw, "measure": _measure}[options.step](options)
    except DreamCacheError as error:
        sys.exit(str(error))


def _draw(options: argparse.Namespace) -> None:
    import comfy.sd

    from ..nodes.host.generation import GenerationSettings, generate_samples
    from ..nodes.host.patching.injection import wrap_for_sampling

    subjects = open_subjects(options.subjects)
    described = {name: getattr(options, name) for name in _SAMPLE_SETTINGS}
    settings = GenerationSettings(**described)
    described |= {"checkpoint": name_and_hash(options.checkpoint), "adapter": name_and_hash(options.adapter)}
    drawings = plan_images(subjects, options.seeds, options.pictures, described)
    print(f"{len(drawings):,} pictures of {len(subjects)} subjects are to be drawn.", flush=True)
    if not drawings:
        return
    adapter = wrap_for_sampling(load_adapter(options.adapter).adapter)
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(options.checkpoint))
    draw = partial(generate_samples, model, clip, vae, adapter)
    drawn = draw_all(drawings, subjects, options.pictures, settings, draw)
    for done, drawing in enumerate(drawn, start=1):
        print(f"{done:,} of {len(drawings):,}: {drawing.file}, {drawing.prompt}", flush=True)


def draw_all(
    drawings: Sequence[GeneratedImage],
    subjects: Sequence[Subject],
    folder: Path,
    settings: Any,
    draw: Callable[..., Iterable[torch.Tensor]],
) -> Iterator[GeneratedImage]:
    """Draw, and save, pictures into a folder: each subject's from its first reference, cut out if it has a mask.

    `settings`: nodes.samples.GenerationSettings, but for the seed. `draw`: gives pictures of prompts, references and
    settings, as nodes.samples.generate_samples does with a model.
    """
    references = {subject.name: subject.references[0] for subject in subjects}
    for (subject, seed), group in itertools.groupby(drawings, key=lambda drawing: (drawing.subject, drawing.seed)):
        same = list(group)
        picture = load_masked_image(references[subject])
        reference = picture.image
        if picture.mask is not None:
            (reference,) = subject_on_white(reference.unsqueeze(0), picture.mask.unsqueeze(0), settings.resolution)
        prompts = [drawing.prompt for drawing in same]
        seeded = dataclasses.replace(settings, seed=seed)
        images = draw(prompts, [reference] * len(same), seeded)
        for drawing, image in zip(same, images, strict=True):
            save_image(folder, drawing, image)
            yield drawing


def _measure(options: argparse.Namespace) -> None:
    from ..nodes.host import encoders

    if not options.clip and not options.dino:
        raise DreamCacheError("There is nothing to measure with: give --clip, --dino or both.")
    if options.clip_text and not options.clip:
        raise DreamCacheError("A text encoder alone compares no pictures with prompts: give --clip as well.")
    subjects = open_subjects(options.subjects)
    clip = encoders.load_clip_image_encoder(_find(options.clip, "clip_vision")) if options.clip else None
    prompts = None
    if clip:
        file = options.clip_text or options.clip
        prompts = encoders.load_clip_text_encoder(_find(file, "text_encoders", "clip_vision"), clip)
        if not prompts:
            print(f"Without CLIP-T, for {file} holds no text encoder: --clip-text takes one from another file.")
    yardsticks = MetricNetworks(
        dino=encoders.load_dino(_find(options.dino, "clip_vision")) if options.dino else None,
        clip_image=clip,
        clip_text=prompts,
    )
    find_mask = None
    if options.background_removal:
        find_mask = encoders.load_mask_finder(_find(options.background_removal, "background_removal"))
    evaluation = measure_images(
        options.pictures,
        subjects,
        yardsticks,
        find_mask,
        on_progress=lambda done, total: print(f"{done:,} of {total:,} measured", end="\r", flush=True),
    )
    output = options.output or options.pictures
    save_evaluation(evaluation, options.pictures, output)
    print(f"\n{to_table(evaluation)}\nresults.json, results.md and contact_sheet.jpg are in {output.resolve()}.")


def _find(file: str, *folders: str) -> Path:
    """A file by its path, or by its name in one of these model folders of ComfyUI's."""
    import folder_paths

    found = [file, *(path for folder in folders if (path := folder_paths.get_full_path(folder, file)))]
    for path in map(Path, found):
        if path.is_file():
            return path
    raise DreamCacheError(
        f"There is no file {file}, neither here nor in ComfyUI's models/{folders[0]}: check its name."
    )


_SAMPLE_SETTINGS = {
    "steps": 30,
    "cfg": 7.5,
    "resolution": 512,
    "sampler": "euler",
    "scheduler": "normal",
    "negative": "",
    "strength": 1.0,
    "image_guidance": 1.0,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dreamcache_core.evaluate", description=__doc__.partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    drawing = steps.add_parser("draw", help="draw each subject with each of its prompts; goes on where it stopped")
    measuring = steps.add_parser("measure", help="measure what was drawn, here or elsewhere")
    for step in (drawing, measuring):
        step.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
        step.add_argument(
            "--subjects", type=Path, required=True, help="folder of subjects, as web/docs/evaluation.md says"
        )
        step.add_argument("--pictures", type=Path, required=True, help="folder of what is drawn")
        step.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    drawing.add_argument("--checkpoint", type=Path, required=True, help="file of the base model")
    drawing.add_argument("--adapter", type=Path, required=True, help="file of the adapter")
    drawing.add_argument("--seeds", type=int, default=4, help="pictures of each prompt (default: %(default)s)")
    settings = drawing.add_argument_group("settings, as in the nodes")
    for name, default in _SAMPLE_SETTINGS.items():
        option = f"--{name.replace('_', '-')}"
        settings.add_argument(option, type=type(default), default=default, help="(default: %(default)s)")
    networks = measuring.add_argument_group("networks: files, by path or by name in ComfyUI's models folders")
    networks.add_argument("--clip", help="of clip_vision: CLIP, for CLIP-I, and for CLIP-T if it holds a text encoder")
    networks.add_argument("--clip-text", help="of text_encoders: the same CLIP's text encoder, with its projection")
    networks.add_argument("--dino", help="of clip_vision: DINO's ViT-S/16, or another DINO")
    networks.add_argument("--background-removal", help="makes masks for pictures that have none, for masked scores")
    measuring.add_argument("--output", type=Path, help="folder for the results (default: that of the pictures)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
