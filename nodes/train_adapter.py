"""DreamCache Train Adapter: triplets become an adapter, on the very model that draws with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from typing_extensions import override

from ..dreamcache_core.adapter.network import Adapter, untrained_adapter
from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.figures.loss_curve import plot_loss_curve
from ..dreamcache_core.generation import GenerationSettings
from ..dreamcache_core.io.images import to_tensor
from ..dreamcache_core.io.names import typed_path
from ..dreamcache_core.io.text import split_lines
from ..dreamcache_core.training.batches import make_batches
from ..dreamcache_core.training.output_folder import TrainingFolder
from ..dreamcache_core.training.session import NO_LORAS, UNTRAINED, Origin, TrainingSession, describe_weights
from ..dreamcache_core.training.settings import PRECISIONS, TrainingSettings
from ..dreamcache_core.training.trainer import Trainer
from ..dreamcache_core.training.triplets import open_triplets
from ..dreamcache_core.training.validation import HeldOut
from ..dreamcache_core.unet import PIXELS_PER_LATENT
from .host.base_model import loras_of, structure_of
from .host.folders import NO_FOLDER, is_inside, trainings_folder, triplets_folder
from .host.frozen_base import ComfyUIBase
from .host.generation import SampleSheet, choose_samples
from .host.node_text import show_text
from .host.patching.injection import unfused, wrap_for_sampling
from .host.training_display import TrainingDisplay
from .schema import TRAINING_CATEGORY, AdapterType


class DreamCacheTrainAdapter(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheTrainAdapter",
            display_name="DreamCache Train Adapter",
            category=TRAINING_CATEGORY,
            description="Trains an adapter for your model on triplets. If you cancel, queue it again to resume.",
            search_aliases=["train", "fine-tune", "training", "create adapter"],
            inputs=[
                io.Model.Input("model", tooltip="The model you will generate with: SD1.x, SD2.x or SDXL."),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Clip.Input("clip", tooltip="The CLIP of that model."),
                io.String.Input(
                    "folder",
                    default="dreamcache_triplets/my_subjects",
                    tooltip="Training data: a folder in ComfyUI's output folder that DreamCache Save Triplet wrote, "
                    "or the full path of another folder.",
                ),
                io.String.Input(
                    "name",
                    default="my_adapter",
                    tooltip="Name of this training, saved in output/dreamcache_training. Reusing a name resumes that "
                    "training; a new name starts over.",
                ),
                io.Int.Input(
                    "steps",
                    default=10_000,
                    min=1,
                    max=10_000_000,
                    tooltip="Total number of steps. Raise it to train longer. The paper used 200,000 steps of 48 "
                    "triplets.",
                ),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="Triplets per step. A larger batch learns more steadily and takes longer.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the square training images. Set it to the size the model was trained at.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=0.0,
                    max=0.1,
                    step=1e-6,
                    round=1e-9,
                    tooltip="The paper uses 0.0001.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    # A new seed after each run would begin another training.
                    control_after_generate=False,
                    tooltip="Seed of the initial weights, the order of the triplets and all noise.",
                ),
                io.Int.Input(
                    "sample_every",
                    default=500,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps between sample images, generated with the adapter so far. 0 = no samples.",
                ),
                io.String.Input(
                    "sample_prompts",
                    default="",
                    multiline=True,
                    placeholder="sample prompts, one per line",
                    tooltip="One prompt per line. Each gives a sample image with the subject of one of the triplets. "
                    "If empty, four triplets with their own prompts are used.",
                ),
                io.Int.Input(
                    "parts",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Split each batch into this many micro-batches to save memory. The steps stay the same.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    tooltip="Recompute activations instead of keeping them. This saves more memory and takes more "
                    "time.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="bfloat16",
                    tooltip="Precision the model computes in. The adapter's weights stay in float32.",
                    advanced=True,
                ),
                io.Int.Input(
                    "warm_up",
                    default=500,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps over which the learning rate rises to its full value.",
                    advanced=True,
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=500,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps between checkpoints. A crash loses at most this many; cancelling loses none.",
                    advanced=True,
                ),
                AdapterType.Input(
                    "adapter",
                    optional=True,
                    tooltip="Start from this trained adapter instead of from scratch. The original stays unchanged.",
                ),
                io.Int.Input(
                    "held_out",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Triplets that aren't trained on. At each checkpoint they show whether the adapter looks "
                    "at its reference: the gap, in green on the curve. 0 = no validation; 64 is plenty.",
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="End the training when the gap hasn't grown for this many checkpoints. 0 = train all "
                    "steps.",
                    advanced=True,
                ),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="For Apply DreamCache and DreamCache Save Adapter."),
                io.Image.Output("loss_curve", tooltip="The loss of each step, and their mean."),
                io.Image.Output("samples", tooltip="The latest sample sheets, each with its references."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def validate_inputs(cls, folder: str | None, name: str | None, resolution: int | None) -> bool | str:
        # None: the value comes from another node.
        if folder is not None and typed_path(folder) == Path():
            return NO_FOLDER
        if name is not None and not is_inside(trainings_folder(), name):
            return _no_name(name)
        return True if resolution is None or not resolution % PIXELS_PER_LATENT else _no_resolution(resolution)

    @classmethod
    @override
    def execute(
        cls,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        clip: comfy.sd.CLIP,
        folder: str,
        name: str,
        steps: int,
        batch: int,
        resolution: int,
        learning_rate: float,
        seed: int,
        sample_every: int,
        sample_prompts: str,
        parts: int,
        checkpointing: bool,
        precision: str,
        warm_up: int,
        checkpoint_every: int,
        adapter: ModelPatcher | None = None,
        held_out: int = 0,
        patience: int = 0,
    ) -> io.NodeOutput:
        if not is_inside(trainings_folder(), name):
            raise DreamCacheError(_no_name(name))
        if resolution % PIXELS_PER_LATENT:
            raise DreamCacheError(_no_resolution(resolution))
        triplets = open_triplets(triplets_folder(folder))
        settings = TrainingSettings(steps, batch, learning_rate, warm_up=warm_up, seed=seed)
        unseen = validated = None
        if held_out:
            unseen, triplets = triplets.hold_out(held_out)
            validated = HeldOut(unseen, settings, resolution, together=batch // parts)
        training = TrainingFolder(trainings_folder() / name)
        training.check_writable()
        # ComfyUI runs nodes in inference mode, which has no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            trained = _first_weights(model, adapter, seed)
            base = ComfyUIBase(model, vae, clip, trained, PRECISIONS[precision], checkpointing)
            origin = Origin(
                base_hash=base.weights_hash,
                adapter=describe_weights(trained.state_dict()) if adapter else UNTRAINED,
                folder=folder,
                batch=batch,
                resolution=resolution,
                seed=seed,
                loras=loras_of(model) or NO_LORAS,
                held_out=held_out,
            )
            samples = SampleSheet(
                model,
                clip,
                vae,
                *choose_samples(unseen or triplets, split_lines(sample_prompts), resolution),
                GenerationSettings(resolution=resolution),
            )
            session = TrainingSession(
                Trainer(base, trained, settings),
                training,
                origin,
                triplets=len(triplets),
                checkpoint_every=checkpoint_every,
                sample_every=sample_every,
                generate_samples=samples.generate,
                held_out=validated,
                patience=patience,
            )
            batches = make_batches(triplets, settings, resolution, first_step=session.step, micro_batches=parts)
            try:
                base.load()
                with closing(_read_ahead(batches)) as ahead:
                    for _ in session.run(ahead, [TrainingDisplay(cls, settings)]):
                        pass
            finally:
                base.unload()
            finished = session.finished_adapter().cpu()
        show_text(cls, f"Trained {session.step:,} steps on {triplets.description}")
        gaps = [(validation.step, validation.gap) for validation in session.validations]
        sheets = [to_tensor(sheet) for sheet in training.sheets(session.step)]
        return io.NodeOutput(
            wrap_for_sampling(finished),
            to_tensor(plot_loss_curve(session.losses, max(steps, session.step), gaps)).unsqueeze(0),
            # Without samples, the nodes that would show them don't run.
            torch.stack(sheets) if sheets else ExecutionBlocker(None),
        )


def _no_name(name: str) -> str:
    return f'"{name}" is not a valid folder name in {trainings_folder()}: use a name such as my_adapter.'


def _no_resolution(resolution: int) -> str:
    nearest = resolution // PIXELS_PER_LATENT * PIXELS_PER_LATENT
    return f"The resolution {resolution} is not a multiple of {PIXELS_PER_LATENT}: use {nearest}."


def _first_weights(model: ModelPatcher, adapter: ModelPatcher | None, seed: int) -> Adapter:
    """The adapter that training begins with, on the model's device: a copy of `adapter`, or an untrained one."""
    structure = structure_of(model)
    if adapter is None:
        return untrained_adapter(structure, seed).to(model.load_device)
    given = unfused(adapter)
    given.check_fits(structure)
    with torch.device("meta"):
        copy = Adapter(given.layers, given.base_model, provenance=given.provenance)
    copy.to_empty(device=model.load_device).load_state_dict(given.state_dict())
    return copy


Item = TypeVar("Item")


def _read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, without end. While one is in use, another thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items)
        while True:
            item = coming.result()
            coming = pool.submit(next, items)
            yield item
