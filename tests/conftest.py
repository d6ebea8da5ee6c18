"""What every test may use: imports of the core that don't need ComfyUI, and fixtures that start it when asked for."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]


def _register_pack() -> None:
    """Make the repository known as the package `dreamcache`, without running its `__init__.py`, which needs ComfyUI.

    The folders whose tests do need it import `support.pack`, which runs it.
    """
    if "dreamcache" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "dreamcache", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec
        sys.modules["dreamcache"] = importlib.util.module_from_spec(spec)


_register_pack()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("more than there is time for each time")
    group.addoption("--damaged-files", type=int, default=150, help="files that each reader is given")
    group.addoption("--kills", type=int, default=1, help="times that the training command is killed")
    group.addoption("--overwrites", type=int, default=6, help="times that an adapter is overwritten while it draws")


@pytest.fixture(scope="session")
def short_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of SD1.5, cut short so that it loads in a moment, and an adapter for it."""
    from harness.generated_weights import SHORT, write_models

    folder = tmp_path_factory.mktemp("models")
    name = write_models(folder, SHORT, seed=1)
    return folder / "checkpoints" / name, folder / "dreamcache" / name


@pytest.fixture(scope="session")
def server():
    """A real ComfyUI server with this pack, and the miniature models as another.

    `FRONT_END_ROOT`: the folder of a front end (`static` of its package) other than the one that ComfyUI brings.
    """
    from harness import environment
    from harness.comfyui_server import ComfyUIServer

    packs = {"dreamcache": ROOT, "miniature": ROOT / "tests" / "support" / "miniature"}
    made, front_end = environment.ensure(), os.environ.get("FRONT_END_ROOT")
    if front_end:
        made = replace(made, front_end=Path(front_end))
    with ComfyUIServer(made, packs=packs) as running:
        running.upload_image(made.comfyui / "input" / "example.png")
        yield running


@pytest.fixture(scope="session")
def studio():
    """A miniature model and its adapter in this process."""
    from support.studio import Studio

    return Studio()
