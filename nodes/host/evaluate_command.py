"""The evaluation command: draws subjects with an adapter and measures the pictures, without a graph."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import folder_paths
import torch

from ...dreamcache_core.adapter.file import load_adapter
from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.evaluation.generated_images import GeneratedImage, plan_images, save_image
from ...dreamcache_core.evaluation.measurement import measure_images
from ...dreamcache_core.evaluation.metrics import MetricNetworks
from ...dreamcache_core.evaluation.options import generation_options
from ...dreamcache_core.evaluation.results import save_evaluation, to_table
from ...dreamcache_core.evaluation.subjects import Subject, load_masked_image, open_subjects
from ...dreamcache_core.generation import GenerationSettings
from ...dreamcache_core.io.atomic import check_writable
from ...dreamcache_core.io.tensor_file import name_and_hash
from ...dreamcache_core.reference.image import subject_on_white
from . import encoders
from .base_model import load_checkpoint
from .generation import generate_samples
from .patching.injection import wrap_for_sampling


def evaluate(options: argparse.Namespace) -> None:
    """Run `draw` or `measure`. `options`: as evaluation/options.py reads them. Raises DreamCacheError."""
    {"draw": _draw, "measure": _measure}[options.step](options)


def _draw(options: argparse.Namespace) -> None:
    subjects = open_subjects(options.subjects)
    described = generation_options(options)
    settings = GenerationSettings(**described)
    described |= {"checkpoint": name_and_hash(options.checkpoint), "adapter": name_and_hash(options.adapter)}
    drawings = plan_images(subjects, options.seeds, options.pictures, described)
    print(f"{len(drawings):,} pictures of {len(subjects)} subjects are to be drawn.", flush=True)
    if not drawings:
        return
    adapter = wrap_for_sampling(load_adapter(options.adapter).adapter)
    model, clip, vae = load_checkpoint(options.checkpoint)
    draw = partial(generate_samples, model, clip, vae, adapter)
    drawn = draw_all(drawings, subjects, options.pictures, settings, draw)
    for done, drawing in enumerate(drawn, start=1):
        print(f"{done:,} of {len(drawings):,}: {drawing.file}, {drawing.prompt}", flush=True)


def draw_all(
    drawings: Sequence[GeneratedImage],
    subjects: Sequence[Subject],
    folder: Path,
    settings: GenerationSettings,
    draw: Callable[..., Iterable[torch.Tensor]],
) -> Iterator[GeneratedImage]:
    """Draw pictures into a folder, each from its subject's first reference, cut out if that has a mask.

    `settings`: for all pictures; each has its own seed. `draw`: as `generate_samples` with a model.
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
    if not options.clip and not options.dino:
        raise DreamCacheError("There is nothing to measure with: give --clip, --dino or both.")
    if options.clip_text and not options.clip:
        raise DreamCacheError("A text encoder alone compares no pictures with prompts: give --clip as well.")
    output = options.output or options.pictures
    check_writable(output)
    subjects = open_subjects(options.subjects)
    clip = encoders.load_clip_image_encoder(_find(options.clip, "clip_vision")) if options.clip else None
    prompts = None
    if clip:
        file = options.clip_text or options.clip
        prompts = encoders.load_clip_text_encoder(_find(file, "text_encoders", "clip_vision"), clip)
        if not prompts:
            print(f"Without CLIP-T, for {file} holds no text encoder: --clip-text takes one from another file.")
    networks = MetricNetworks(
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
        networks,
        find_mask,
        on_progress=lambda done, total: print(f"{done:,} of {total:,} measured", end="\r", flush=True),
    )
    save_evaluation(evaluation, options.pictures, output)
    print(f"\n{to_table(evaluation)}\nresults.json, results.md and contact_sheet.jpg are in {output.resolve()}.")


def _find(file: str, *folders: str) -> Path:
    """The path of a file that is given by its path, or by its name in one of these models folders of ComfyUI."""
    found = [file, *(path for folder in folders if (path := folder_paths.get_full_path(folder, file)))]
    for path in map(Path, found):
        if path.is_file():
            return path
    raise DreamCacheError(
        f"There is no file {file}, neither here nor in ComfyUI's models/{folders[0]}: check its name."
    )
