"""What every test may use: the pack as ComfyUI imports it, and real ComfyUI models small enough for the CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import environment  # noqa: E402

# First, for ComfyUI has a module `nodes`, as this repository has a folder.
sys.path.insert(0, str(environment.ensure().comfyui))

from comfy.cli_args import args  # noqa: E402

args.cpu = True


def _import_pack() -> None:
    """Import this repository as a package of its own name, as ComfyUI does with a folder of custom_nodes."""
    spec = importlib.util.spec_from_file_location(
        "dreamcache", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["dreamcache"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_import_pack()


@pytest.fixture(scope="session")
def server():
    """A real ComfyUI server with this pack, and the miniature models as another."""
    from comfyui_server import ComfyUIServer

    packs = {"dreamcache": ROOT, "miniature": ROOT / "tests" / "miniature"}
    made = environment.ensure()
    with ComfyUIServer(made, packs=packs) as running:
        running.upload_image(made.comfyui / "input" / "example.png")
        yield running
