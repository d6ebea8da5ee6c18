"""Where Adapter Loader finds its files: the models folder, and those that extra_model_paths.yaml names."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness import environment
from harness.comfyui_server import ComfyUIServer
from harness.workflow_prompt import OWN_ATTENTION
from support.graph import Graph, adapter_file

ROOT = Path(__file__).resolve().parents[2]
AUTHORS_FILE = Path(__file__).parents[1] / "support" / "conformance" / "official_format_sd21_mini.pt"


def listed(server: ComfyUIServer) -> list[str]:
    """What the list shows after R was pressed."""
    _, options = server.object_info()["DreamCacheAdapterLoader"]["input"]["required"]["adapter_name"]
    return options["options"]


def info(server: ComfyUIServer, adapter_name: str) -> str:
    graph = Graph(server)
    loader, _ = graph.add("DreamCacheAdapterLoader", adapter_name=adapter_name)
    preview, _ = graph.add("PreviewAny", source=[loader, 1])
    return server.run(graph.prompt).outputs[preview]["text"][0]


def test_a_file_that_comes_later_is_listed_and_described(server: ComfyUIServer) -> None:
    folder = server.base / "models" / "dreamcache"
    assert "later.pt" not in listed(server)
    shutil.copyfile(AUTHORS_FILE, folder / "later.pt")
    (folder / "notes.txt").touch()
    assert "later.pt" in listed(server)
    assert "notes.txt" not in listed(server)
    assert info(server, "later.pt").startswith("the authors' DreamCache adapter, for SD2.x, 1,010,944 parameters")
    ours = info(server, adapter_file(server, "sd15"))
    assert ours.startswith("DreamCache adapter, for a U-Net of 32 channels and 48-wide prompts, 253,568 parameters")
    assert "layers: middle_block.1, output_blocks.4.1" in ours


def test_a_file_that_changes_is_read_again(server: ComfyUIServer) -> None:
    path = server.base / "models" / "dreamcache" / "changing.safetensors"
    shutil.copyfile(path.with_name(adapter_file(server, "sd15")), path)
    before = info(server, path.name)
    shutil.copyfile(path.with_name(adapter_file(server, "sd21")), path)
    assert info(server, path.name) != before


def test_extra_model_paths_are_searched(tmp_path: Path) -> None:
    elsewhere = tmp_path / "adapters"
    elsewhere.mkdir()
    shutil.copyfile(AUTHORS_FILE, elsewhere / "authors.pt")
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path}\n  dreamcache: adapters\n")
    arguments = ["--cpu", "--extra-model-paths-config", str(config)]
    with ComfyUIServer(environment.ensure(), {"dreamcache": ROOT}, arguments=arguments) as server:
        assert listed(server) == [*OWN_ATTENTION, "authors.pt"]
        assert "SD2.x" in info(server, "authors.pt")
        # The usual folder is there too, for people to put files into.
        assert not list((server.base / "models" / "dreamcache").iterdir())
