"""U-Net and adapter trained together, from nothing, on scenes with their captions and references.

A large model can draw whatever is told it in its own features. A small one, trained on prompts alone, has had nobody to
tell it more than a prompt does, and an adapter that is trained on it afterwards changes little. Gradients go through
the caching pass too: to predict what noise there is at timestep 1, so small a U-Net need not know what it sees, and
here it learns to show it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint
from dreamcache.dreamcache_core.training.loss import EncodedPrompts, biased_timesteps, loss_at
from dreamcache.dreamcache_core.training.processes import Processes
from torch import nn

from .adapter import AS_IT_SHIPS, TIMESTEP_BIAS, DemoBase, Training
from .alignment import Alignment
from .artwork import DEMO
from .base import NO_PROMPT
from .composer import Composed, Composer, all_captions
from .loop import DEVICE, initialize, muon, on_device, train
from .scenes import Scenes, of_subjects

STEPS = 2_600
REFERENCES = 12
"""Of a step."""
READERS = 2
"""Of each reference: its scene at so many noise levels, for the caching pass takes as long as one of them."""
NO_REFERENCE = 0.2
"""How often a step has no adapter, which image guidance asks for."""
SUBJECT_ONLY = 0.3
"""How often a step that has one reads the subject's tokens alone, as Encode Reference has it with subject_only."""
ALIGNED = 0.1
"""Weight of the alignment's loss, at first."""
GUIDED = 0.5
"""How much of what a reference changes is asked for once more, at last: image guidance 1 / (1 - GUIDED) is learned."""
LEARNING_RATE = 4e-3
FOLDER = DEMO / "joint"


def begin(network: nn.ModuleDict) -> None:
    """Draw the weights that training begins with, of `unet` and `adapter`.

    What a layer asks of a reference and what it finds it by begin as the same, so that each place finds what looks like
    it from the first step.
    """
    initialize(network["unet"])
    for name, weight in network["adapter"].named_parameters():
        if name.endswith("to_k.weight"):
            nn.init.orthogonal_(weight)
            network["adapter"].get_parameter(name.replace("to_k", "to_q")).data.copy_(weight)


def train_together(
    training: Training, adapter: Adapter, composer: Composer, processes: Processes, steps: int = STEPS
) -> nn.Module:
    """Train both with the trainer's loss, in place. Returns copies with averaged weights, `unet` and `adapter`."""
    base = training.base_of(adapter, AS_IT_SHIPS)
    base.load()
    network = nn.ModuleDict({"unet": base.unet, "adapter": adapter})
    begin(network)
    contexts, alignment = contexts_of(base), Alignment(adapter)

    def loss_of_step(step: int) -> torch.Tensor:
        torch.manual_seed(15 * 2**32 + step)
        done = step / (steps * processes.count)
        # Alignment fades, since what is best to look at is for the denoising loss to say. Guidance comes, as there
        # begins to be something to guide.
        return loss_of_some(base, composer.draw(REFERENCES), contexts, alignment, ALIGNED * (1 - done), GUIDED * done)

    return train(
        network,
        loss_of_step,
        FOLDER,
        steps=steps,
        learning_rate=LEARNING_RATE,
        falling=0.45,
        ema=0.998,
        every=50,
        processes=processes,
        optimizers_of=muon,
    )


def load_reached(training: Training, adapter: Adapter) -> tuple[nn.Module, int]:
    """What the training in FOLDER has reached: `unet` and `adapter` with averaged weights, and its number of steps.

    Raises DreamCacheError if there is no checkpoint.
    """
    base = training.base_of(adapter, AS_IT_SHIPS)
    base.load()
    network = nn.ModuleDict({"unet": base.unet, "adapter": adapter})
    state = load_checkpoint(FOLDER, DEVICE)
    if state is None:
        raise DreamCacheError(f"There is no checkpoint in {FOLDER}: run the step `joint` first.")
    network.load_state_dict(state["averaged"])
    return network, state["step"]


@torch.no_grad()
def contexts_of(base: DemoBase) -> torch.Tensor:
    """What the U-Net reads of all captions, and last of the empty one, (captions, tokens, channels), all as long as the
    longest. The text encoder stays as it is, so that each is encoded once.
    """
    captions = [*all_captions(), ""]
    # Of a thousand at once, for ComfyUI goes through them one by one.
    parts = [base.encode_prompts(captions[start : start + 1000]).context for start in range(0, len(captions), 1000)]
    tokens = math.lcm(*(part.shape[1] for part in parts))
    return torch.cat([part.repeat(1, tokens // part.shape[1], 1) for part in parts]).to(DEVICE)


def loss_of_some(
    base: DemoBase,
    composed: Composed,
    contexts: torch.Tensor,
    alignment: Alignment,
    aligned: float = ALIGNED,
    guided: float = GUIDED,
) -> torch.Tensor:
    """The mean loss of scenes, each at as many noise levels as its reference has readers. All of them read their
    references, or their subjects alone, or none; and those that read all of them are shown where to look.

    `aligned`: weight of that. `guided`: as GUIDED.
    """
    latents, captions = composed.latents.repeat(READERS, 1, 1, 1), composed.captions.repeat(READERS)
    captions[torch.rand(len(captions), device=DEVICE) < NO_PROMPT] = len(contexts) - 1
    cache, masks = None, None
    if float(torch.rand(())) >= NO_REFERENCE:
        masks = composed.masks if float(torch.rand(())) < SUBJECT_ONLY else None
        cache = _repeated(cached(base, composed.references, torch.randn_like(composed.references), masks), READERS)
    # At equal distances, so that no batch is of easy ones.
    uniform = (torch.randperm(len(latents), device=DEVICE) + torch.rand(len(latents), device=DEVICE)) / len(latents)
    with alignment.watching():
        losses = loss(base, latents, cache, contexts[captions], uniform, torch.randn_like(latents), guided)
    shown = cache is not None and masks is None
    return losses.mean() + aligned * alignment.loss(composed) if shown else losses.mean()


def cached(
    base: DemoBase, references: torch.Tensor, noise: torch.Tensor, masks: torch.Tensor | None = None
) -> ReferenceCache:
    """What the U-Net sees in references, and if there are masks of them, (batch, height, width), in the subjects."""
    cache = base.cache(references, noise)
    return cache if masks is None else of_subjects(cache, masks)


def _repeated(cache: ReferenceCache, times: int) -> ReferenceCache:
    """All references, again and again, for latents that are repeated in the same way."""
    (batch,) = cache.batches
    features = {layer: tensor.repeat(times, 1, 1, 1) for layer, tensor in batch.features.items()}
    subject = None if batch.subject is None else batch.subject.repeat(times, 1, 1)
    return replace(cache, batches=(replace(batch, features=features, subject=subject),))


def loss(
    base: DemoBase,
    latents: torch.Tensor,
    cache: ReferenceCache | None,
    context: torch.Tensor,
    uniform: torch.Tensor,
    noise: torch.Tensor,
    guided: float = 0.0,
) -> torch.Tensor:
    """The trainer's loss of each, (batch,). `cache`: what is read, or None. `uniform`: what timesteps are drawn with,
    0…1. `guided`: as GUIDED.
    """
    timesteps = biased_timesteps(uniform, len(base.sigmas), TIMESTEP_BIAS)
    return loss_at(base, latents, timesteps, noise, EncodedPrompts(context), cache, guided=guided)


@torch.no_grad()
def measure(base: DemoBase, scenes: Scenes) -> dict[str, float]:
    """Mean loss of scenes without a reference, with that of another scene, with their own, and with its subject alone:
    at the same timesteps and with the same noise, always.
    """
    sums: dict[str, float] = {}
    for start in range(0, len(scenes), 64):
        part = slice(start, start + 64)
        latents, references = scenes.latents[part].float(), scenes.references[part].float()
        random = np.random.default_rng([17, start])
        uniform = on_device((random.permutation(len(latents)) + 0.5) / len(latents))
        noises = [on_device(random.standard_normal(latents.shape, dtype=np.float32)) for _ in range(2)]
        context = base.encode_prompts(scenes.captions[part]).context
        caches: dict[str, ReferenceCache | None] = {
            "none": None,
            "wrong": cached(base, references.roll(1, 0), noises[1]),
            "right": cached(base, references, noises[1]),
            "subject only": cached(base, references, noises[1], scenes.masks[part]),
        }
        for name, cache in caches.items():
            total = float(loss(base, latents, cache, context, uniform, noises[0]).sum())
            sums[name] = sums.get(name, 0.0) + total / len(scenes)
    return sums
