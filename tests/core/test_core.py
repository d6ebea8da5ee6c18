"""The core by itself: it imports nothing of ComfyUI, selects the paper's layers, and prepares references."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.reference.image import resize_to_area, subject_on_white
from dreamcache.dreamcache_core.unet import STAGES, UNetStructure, select_layers
from dreamcache.dreamcache_core.version import VERSION
from support.structures import SD15

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def structure() -> UNetStructure:
    return SD15


def test_the_core_needs_nothing_of_comfyui() -> None:
    """Imported from this folder alone, it brings in no module of ComfyUI's."""
    script = "import dreamcache_core, sys; print([m for m in sys.modules if m.startswith(('comfy', 'folder_paths'))])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_default_layers_are_the_papers(structure) -> None:
    names = [layer.name for layer in select_layers(structure.layers)]
    assert names == ["middle_block.1", *(f"output_blocks.{number}.1" for number in (4, 6, 8, 10))]


def test_the_encoder_can_be_cached_too(structure) -> None:
    names = [layer.name for layer in select_layers(structure.layers, STAGES)]
    assert names[:3] == ["input_blocks.2.1", "input_blocks.5.1", "input_blocks.8.1"]
    assert names[3:] == [layer.name for layer in select_layers(structure.layers)]


def test_the_subject_is_cut_out_and_centred_on_white() -> None:
    image = torch.zeros(1, 60, 90, 3)
    image[:, 10:30, 40:80] = torch.tensor([1.0, 0.0, 0.0])
    mask = torch.zeros(1, 60, 90)
    mask[:, 10:30, 40:80] = 1.0
    (canvas,) = subject_on_white(image, mask, 100)
    assert canvas.shape == (100, 100, 3)
    subject = canvas[..., 1] < 0.5
    rows, columns = subject.any(1).nonzero(), subject.any(0).nonzero()
    # Twice as wide as high, with a tenth of the canvas left on each side.
    assert (int(columns.min()), int(columns.max())) == (10, 89)
    assert (int(rows.min()), int(rows.max())) == (30, 69)
    assert torch.equal(canvas[~subject].unique(), torch.ones(1))


def test_a_reference_keeps_its_proportions_and_gets_the_area() -> None:
    assert resize_to_area(torch.rand(1, 300, 1200, 3), 512).shape == (1, 256, 1024, 3)
    assert resize_to_area(torch.rand(1, 301, 500, 3), 0).shape == (1, 304, 496, 3)


def test_the_version_is_that_of_the_package() -> None:
    assert re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1] == VERSION  # type: ignore[index]
