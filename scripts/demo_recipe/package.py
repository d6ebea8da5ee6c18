"""The demo model as the file that ships: half precision, with what it was made from in its header."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from dreamcache.dreamcache_core.io.tensor_file import write_file
from harness.environment import ROOT
from PIL import Image

from .artwork import DEMO, PACKAGES, trained_subjects
from .loop import as_tensor
from .world import random_scene

AUTOENCODER = DEMO / "autoencoder.safetensors"
DECODER = DEMO / "decoder.safetensors"
BASE = DEMO / "base.safetensors"
"""The model as it is before any adapter."""


def provenance(**trained: int | str) -> dict[str, object]:
    """What a file's header says of where it comes from. `trained`: steps and the like."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    return {
        "recipe": "scripts/demo_recipe/make_demo.py",
        "commit": commit.stdout.strip(),
        "data": {vendor: f"{package} ({licence})" for vendor, (package, licence) in PACKAGES.items()},
        **trained,
    }


@torch.no_grad()
def write_model(path: Path, kind: str, version: int, tensors: dict[str, torch.Tensor], header: dict) -> None:
    """`tensors`: as `demo_networks` takes them."""
    half = {name: tensor.half() for name, tensor in tensors.items()}
    write_file(path, kind, version, header, half)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


@torch.no_grad()
def rgb_factors(encode) -> list[list[float]]:
    """What turns latents into colours for ComfyUI's previews, fitted to scenes: (4, 3).

    `encode`: images (batch, 128, 128, 3), 0…1 → latents (batch, 4, 16, 16), as the U-Net has them.
    """
    random = np.random.default_rng(7)
    drawn = trained_subjects()
    images = np.stack([random_scene(drawn, random).image for _ in range(64)])
    small = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)) for image in images]
    # Previews take -1…1 for black to white.
    colors = torch.from_numpy(np.stack(small)).reshape(-1, 3) / 127.5 - 1
    latents = encode(as_tensor(images).movedim(1, -1)).movedim(1, -1).reshape(-1, 4)
    return torch.linalg.lstsq(latents, colors).solution.tolist()
