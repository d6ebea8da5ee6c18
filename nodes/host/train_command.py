"""The training command: trains an adapter on a checkpoint that ComfyUI loads, without a graph."""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial

import comfy.sd
from comfy.model_patcher import ModelPatcher

from ...dreamcache_core.adapter.network import untrained_adapter
from ...dreamcache_core.generation import GenerationSettings
from ...dreamcache_core.io.disk_cache import DiskCache
from ...dreamcache_core.io.text import read_text, split_lines
from ...dreamcache_core.training.batches import make_batches
from ...dreamcache_core.training.estimate import cache_size, describe, measure
from ...dreamcache_core.training.log import ConsoleLog, TensorBoardLog
from ...dreamcache_core.training.options import settings_of
from ...dreamcache_core.training.output_folder import TrainingFolder
from ...dreamcache_core.training.processes import Processes
from ...dreamcache_core.training.recipes import RECIPES
from ...dreamcache_core.training.session import UNTRAINED, Listener, Origin, TrainingSession
from ...dreamcache_core.training.settings import CACHE_PRECISIONS, PRECISIONS, STARTS
from ...dreamcache_core.training.stopping import stop_requests
from ...dreamcache_core.training.trainer import Trainer
from ...dreamcache_core.training.triplets import Triplets, open_triplets
from ...dreamcache_core.training.validation import HeldOut
from .base_model import load_checkpoint, structure_of
from .frozen_base import FITTED_ON, ComfyUIBase, begin_as_the_model
from .generation import SampleSheet, choose_samples


def train(options: argparse.Namespace, processes: Processes) -> None:
    """Train to the last step, or until SIGINT or SIGTERM, which end the process with a sentence.

    `options`: as training/options.py reads them. Raises DreamCacheError.
    """
    try:
        _train(options, processes)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command resumes from the last checkpoint.")


def _train(options: argparse.Namespace, processes: Processes) -> None:
    settings, say, folder = settings_of(options), processes.say, TrainingFolder(options.output)
    triplets = open_triplets(options.data)
    prompts = split_lines(read_text(options.sample_prompts)) if options.sample_prompts else []
    if not options.dry_run:
        folder.check_writable()
    kept_in = CACHE_PRECISIONS[options.cache_precision]
    disk_cache = DiskCache(options.cache_latents, kept_in) if options.cache_latents and not options.dry_run else None
    say(triplets.description)
    unseen = held_out = None
    if options.held_out:
        unseen, triplets = triplets.hold_out(options.held_out)
        size = settings.batch // (processes.count * options.parts)
        held_out = HeldOut(unseen, settings, options.resolution, together=size, processes=processes)
        say(f"{len(held_out):,} of them are held out for validations.")
    say(f"Loading {options.checkpoint} …")
    model, clip, vae = load_checkpoint(options.checkpoint)
    adapter = untrained_adapter(structure_of(model), settings.seed).to(model.load_device)
    together = f", trained by {processes.count} processes" if processes.count > 1 else ""
    say(f"{adapter.parameter_count:,} parameters for {adapter.base_model}{together}")
    say(f"layers: {', '.join(layer.name for layer in adapter.layers)}")
    base = ComfyUIBase(
        model, vae, clip, adapter, PRECISIONS[options.precision], options.checkpointing, disk_cache=disk_cache
    )
    base.load()
    if options.start != STARTS[0]:
        chosen = range(0, len(triplets), math.ceil(len(triplets) / FITTED_ON))
        references = (triplets.plain(index, options.resolution).reference.unsqueeze(0) for index in chosen)
        begin_as_the_model(base, adapter, references, settings.seed)
        for weight in adapter.parameters():
            # Fitted on several GPUs, it may differ in the last bits.
            weight.data.copy_(processes.average(weight.data))
    trainer = Trainer(base, adapter, settings, processes.average)
    batches = partial(
        make_batches,
        triplets,
        settings,
        options.resolution,
        micro_batches=options.parts,
        process=processes.index,
        processes=processes.count,
        workers=options.workers,
    )
    if options.dry_run:
        if options.recipe:
            say(f"recipe: {options.recipe}, {RECIPES[options.recipe].description}")
        cache = cache_size(base, triplets, options.resolution, kept_in) if options.cache_latents else 0
        say(describe(trainer, measure(trainer, batches()), triplets, options.output, cache))
        return
    samples = _sample_sheet(options, unseen or triplets, prompts, model, clip, vae) if options.sample_every else None
    session = TrainingSession(
        trainer,
        folder,
        Origin(
            base_hash=base.weights_hash,
            adapter=UNTRAINED if options.start == STARTS[0] else options.start,
            folder=str(options.data.resolve()),
            batch=settings.batch,
            resolution=options.resolution,
            seed=settings.seed,
            held_out=options.held_out,
        ),
        triplets=len(triplets),
        checkpoint_every=options.every,
        sample_every=options.sample_every,
        generate_samples=samples.generate if samples else None,
        held_out=held_out,
        patience=options.patience,
        write_adapter=True,
        processes=processes,
    )
    if session.step:
        say(f"Resuming after step {session.step:,}.")
    listeners: list[Listener] = [ConsoleLog(settings.steps, options.patience)]
    if options.tensorboard and processes.is_main:
        listeners.append(TensorBoardLog(folder.logs, session.step))
    with stop_requests() as is_stop_requested:
        for _ in session.run(batches(first_step=session.step), listeners, is_stop_requested):
            pass
    is_finished = session.step >= settings.steps
    if session.is_flat and not is_finished:
        say(f"The gap stopped growing before step {session.step:,}: the same command with --patience 0 trains on.")
    elif not is_finished:
        sys.exit(f"Stopped after step {session.step:,}: the same command resumes there." if processes.is_main else 1)
    say(f"The adapter is {folder.adapter_path.resolve()}.")


def _sample_sheet(
    options: argparse.Namespace,
    triplets: Triplets,
    prompts: list[str],
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
) -> SampleSheet:
    """The samples of `--sample-prompts`, or of some triplets' own prompts."""
    settings = GenerationSettings(steps=options.sample_steps, resolution=options.resolution)
    return SampleSheet(model, clip, vae, *choose_samples(triplets, prompts, options.resolution), settings)
