"""A training of a miniature in the processes of a launcher.

Run in tests/ as `python -m support.train_together TRIPLETS OUTPUT STEPS STOP`. Only the second process is asked to
stop, after step STOP. Checkpoints come at the end alone.
"""

from __future__ import annotations

import collections
import sys
from dataclasses import replace
from pathlib import Path

# First, since it makes ComfyUI importable.
from support import pack  # noqa: F401

# isort: split

from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.training.batches import make_batches
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.processes import Processes, join_processes
from dreamcache.dreamcache_core.training.session import UNTRAINED, Origin, TrainingSession
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.dreamcache_core.training.triplets import open_triplets
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from support.miniature import models
from torch.nn.attention import SDPBackend, sdpa_kernel

SETTINGS = TrainingSettings(batch=4, learning_rate=1e-3, warm_up=2, ema=0.9, seed=3)


def new_adapter(model: ModelPatcher) -> Adapter:
    structure = structure_of(model)
    adapter = Adapter(select_layers(structure.layers), structure.base_model)
    adapter.load_state_dict(models.generated_weights(adapter, models.SEED))
    return adapter


def train(triplets: Path, output: Path, steps: int, processes: Processes, stop: int = 0) -> None:
    settings = replace(SETTINGS, steps=steps)
    model = models.unet_patcher("sd15")
    adapter = new_adapter(model)
    base = ComfyUIBase(model, models.vae(), models.clip("sd15"), adapter)
    base.load()
    origin = Origin(base.weights_hash, UNTRAINED, triplets.name, settings.batch, resolution=64, seed=settings.seed)
    session = TrainingSession(
        Trainer(base, adapter, settings, processes.average),
        TrainingFolder(output),
        origin,
        triplets=6,
        checkpoint_every=100,
        processes=processes,
    )
    batches = make_batches(
        open_triplets(triplets),
        settings,
        resolution=64,
        first_step=session.step,
        process=processes.index,
        processes=processes.count,
    )
    steps_taken = session.run(batches, is_stop_requested=lambda: processes.index == 1 and session.step == stop)
    # Fused attention rounds by the size of a batch, which AdamW takes for a gradient where there is next to none.
    with sdpa_kernel(SDPBackend.MATH):
        collections.deque(steps_taken, maxlen=0)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), join_processes(cpu=True), int(sys.argv[4]))
