"""What every test may use: the pack as ComfyUI imports it, and real ComfyUI models small enough for the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from front_end import FrontEnd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
sys.path.append(str(ROOT))

import environment  # noqa: E402

from dreamcache_core.launch import import_pack  # noqa: E402

import_pack(environment.ensure().comfyui, cpu=True)


@pytest.fixture(scope="session")
def short_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of SD1.5, cut short so that it loads in a moment, and an adapter for it."""
    from generated_weights import SHORT, write_models

    folder = tmp_path_factory.mktemp("models")
    name = write_models(folder, SHORT, seed=1)
    return folder / "checkpoints" / name, folder / "dreamcache" / name


@pytest.fixture(scope="session")
def server():
    """A real ComfyUI server with this pack, and the miniature models as another.

    `FRONT_END_ROOT`: the folder of a front end (`static` of its package) other than the one that ComfyUI brings.
    """
    from comfyui_server import ComfyUIServer

    packs = {"dreamcache": ROOT, "miniature": ROOT / "tests" / "miniature"}
    made = environment.ensure()
    front_end = os.environ.get("FRONT_END_ROOT")
    arguments = ["--cpu", *(["--front-end-root", front_end] if front_end else [])]
    with ComfyUIServer(made, packs=packs, arguments=arguments) as running:
        running.upload_image(made.comfyui / "input" / "example.png")
        yield running


@pytest.fixture(scope="session")
def studio():
    """A miniature model and its adapter in this process."""
    from studio import Studio

    return Studio()


@pytest.fixture
def front_end(opened: FrontEnd) -> Iterator[FrontEnd]:
    """The front end that a module has `opened`, with an empty graph. A test fails if the page complains of anything."""
    opened.load_blank()
    yield opened
    errors = list(opened.errors)
    opened.errors.clear()
    assert not errors
