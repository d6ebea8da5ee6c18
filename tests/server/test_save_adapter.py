"""DreamCache Save Adapter in a real server: what it writes is what Adapter Loader reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter, save_adapter
from dreamcache.dreamcache_core.adapter.provenance import Provenance
from dreamcache.nodes.save_adapter import PRECISIONS
from harness.comfyui_server import ComfyUIServer, WorkflowError
from support.graph import Scene, adapter_file, difference, failure


@pytest.fixture
def adapters(server: ComfyUIServer) -> Path:
    return server.base / "models" / "dreamcache"


def save(scene: Scene, prefix: str, precision: str = "float32") -> str:
    """Save the scene's adapter. Returns what the node says."""
    scene.add("DreamCacheSaveAdapter", adapter=scene.adapter, filename_prefix=prefix, precision=precision)
    (said,) = (output["text"][0] for output in scene.server.run(scene.prompt).outputs.values() if "text" in output)
    return said


def listed(server: ComfyUIServer) -> list[str]:
    """What Adapter Loader offers after a refresh."""
    return server.object_info()["DreamCacheAdapterLoader"]["input"]["required"]["adapter_name"][1]["options"]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("float16", 0.01)])
def test_a_saved_adapter_draws_what_it_drew(server: ComfyUIServer, precision: str, tolerance: float) -> None:
    said = save(Scene(server), f"drawing/{precision}", precision)
    assert said.startswith(f"Saved drawing/{precision}_00001_.safetensors, ")
    assert f"drawing/{precision}_00001_.safetensors" in listed(server)
    scene = Scene(server)
    before = scene.sample(scene.apply(scene.model))
    scene = Scene(server)
    loaded = scene.add("DreamCacheAdapterLoader", adapter_name=f"drawing/{precision}_00001_.safetensors")
    after = scene.sample(scene.apply(scene.model, adapter=loaded))
    assert difference(after, before) <= tolerance


def test_a_saved_adapter_keeps_its_provenance(server: ComfyUIServer, adapters: Path) -> None:
    adapter = load_adapter(adapters / adapter_file(server, "sd15")).adapter
    adapter.provenance = (Provenance("0123", 10, 4, 7),)
    save_adapter(adapters / "trained.safetensors", adapter)
    scene = Scene(server)
    scene.adapter = scene.add("DreamCacheAdapterLoader", adapter_name="trained.safetensors")
    save(scene, "again", "float16")
    file = load_adapter(adapters / "again_00001_.safetensors")
    assert file.adapter.provenance == adapter.provenance
    assert {tensor.dtype for tensor in file.adapter.state_dict().values()} == {torch.float16}


def test_no_file_is_ever_overwritten(server: ComfyUIServer, adapters: Path) -> None:
    save(Scene(server), "many")
    before = (adapters / "many_00001_.safetensors").read_bytes()
    said = save(Scene(server), "many", "float16")
    assert said.startswith("Saved many_00002_.safetensors, ")
    assert (adapters / "many_00001_.safetensors").read_bytes() == before


@pytest.mark.parametrize("prefix", ["ending/", "ending/.", "./ending//"])
def test_a_name_that_ends_like_a_folder_is_numbered_as_any_other(
    server: ComfyUIServer, adapters: Path, prefix: str
) -> None:
    numbers = [int(re.findall(r"Saved ending_(\d{5})_", save(Scene(server), prefix, kind))[0]) for kind in PRECISIONS]
    assert numbers[1] == numbers[0] + 1
    assert all((adapters / f"ending_{number:05}_.safetensors").stat().st_size > 1000 for number in numbers)


@pytest.mark.parametrize("prefix", ["", ".", "../outside", "a/../../outside", "/tmp/outside"])
def test_names_outside_the_models_folder_are_refused(server: ComfyUIServer, adapters: Path, prefix: str) -> None:
    with pytest.raises(WorkflowError, match=r"is not a valid file name in .*: use a name such as my_adapter"):
        save(Scene(server), prefix)
    scene = Scene(server)
    assert "is not a valid file name in" in failure(lambda: save(scene, scene.add("PrimitiveString", value=prefix)))
    assert not list(adapters.parent.glob("outside*"))


def test_a_folder_that_cannot_be_written_to_is_refused(server: ComfyUIServer, adapters: Path) -> None:
    (adapters / "taken").touch()
    assert "Cannot write taken/adapter to" in failure(lambda: save(Scene(server), "taken/adapter"))
