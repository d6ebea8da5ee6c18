"""Scenes as the base model is trained on them: latents and tokens, written once, for that takes as long as a step."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dreamcache_core import DreamCacheError

from .artwork import DEMO, trained_subjects
from .loop import as_tensor
from .world import random_scene

FOLDER = DEMO / "scenes"
SHARD = 2048
COUNT = 16 * SHARD


@torch.no_grad()
def write_scenes(networks, count: int) -> None:
    """Encode so many scenes that aren't held out, in files of 2048, which are left alone where they exist."""
    drawn = trained_subjects()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for shard in range(count // SHARD):
        path = FOLDER / f"{shard:04d}.safetensors"
        if path.exists():
            continue
        random = np.random.default_rng([2, shard])
        images: list[np.ndarray] = []
        tokens: list[list[int]] = []
        for _ in range(SHARD):
            scene = random_scene(drawn, random)
            images.append(scene.image)
            tokens.append(prompt_tokens(networks.clip, scene.caption))
        latents = torch.cat(
            [
                networks.model.model.process_latent_in(networks.vae.encode(as_tensor(part).movedim(1, -1)))
                for part in np.split(np.stack(images), SHARD // 64)
            ]
        )
        partial = path.with_suffix(".partial")
        save_file({"latents": latents.half(), "tokens": torch.tensor(tokens, dtype=torch.int32)}, partial)
        partial.replace(path)
        print(f"{path.name}: latents' mean {latents.mean():.3f}, deviation {latents.std():.3f}", flush=True)


def prompt_tokens(clip, prompt: str) -> list[int]:
    """The first part of a prompt, as ComfyUI cuts it."""
    return [token for token, *_ in clip.tokenize(prompt)["l"][0]]


def read_scenes() -> dict[str, torch.Tensor]:
    """`latents` (scenes, 4, 16, 16) float32, and `tokens` (scenes, 16) int32."""
    shards = [load_file(path) for path in sorted(FOLDER.glob("*.safetensors"))]
    if not shards:
        raise DreamCacheError(f"There are no scenes in {FOLDER}: run the step `scenes` first.")
    tensors = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    return {**tensors, "latents": tensors["latents"].float()}
