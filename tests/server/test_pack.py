"""What ComfyUI's registry would ship, installed alone, does what the repository does."""

from __future__ import annotations

import json
import urllib.request
import zipfile
from pathlib import Path

import pytest
import tomllib
from harness import environment
from harness.comfyui_server import ComfyUIServer
from harness.workflow_prompt import PHOTOGRAPH, WORKFLOWS
from release.pack import pack, shipped_files
from support.graph import Scene

ROOT = environment.ROOT


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what is shipped is what git tracks")
def test_the_archive_alone_draws_a_subject(tmp_path: Path) -> None:
    pack(tmp_path / "node.zip")
    installed = tmp_path / "comfyui-dreamcache"
    with zipfile.ZipFile(tmp_path / "node.zip") as archive:
        archive.extractall(installed)
    assert {path.name for path in installed.iterdir() if path.is_dir()} == {
        "dreamcache_core",
        "locales",
        "nodes",
        "web",
        "workflows",
    }
    packs = {"comfyui-dreamcache": installed, "miniature": ROOT / "tests" / "support" / "miniature"}
    made = environment.ensure()
    with ComfyUIServer(made, packs) as server:
        server.upload_image(made.comfyui / "input" / "example.png")
        scene = Scene(server)
        assert scene.sample(scene.apply(scene.model)).isfinite().all()
        assert set(server.get("/i18n")) == {path.name for path in (ROOT / "locales").iterdir()}
        listed = server.get("/workflow_templates")["comfyui-dreamcache"]
        assert listed == [path.stem for path in WORKFLOWS.values()]  # In this order, whatever the disk's is.
        # Links have their lasting names, whatever the files are called.
        for name, path in WORKFLOWS.items():
            assert server.get(f"/api/workflow_templates/comfyui-dreamcache/{name}.json") == json.loads(path.read_text())
        assert (server.base / "input" / PHOTOGRAPH.name).read_bytes() == PHOTOGRAPH.read_bytes()
        extensions = [name for name in server.get("/extensions") if name.startswith("/extensions/comfyui-dreamcache/")]
        assert "/extensions/comfyui-dreamcache/dreamcache.js" in extensions
        for name in extensions:
            assert urllib.request.urlopen(server.url + name, timeout=60).status == 200


def test_the_registry_is_told_what_the_pack_says_of_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"PublisherId", "DisplayName", "requires-comfyui", "includes"} <= project["tool"]["comfy"].keys()
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in requirements if not line.startswith("#")] == project["project"]["dependencies"]
    for path in (ROOT / "workflows").glob("*.json"):
        for node in json.loads(path.read_text())["nodes"]:
            if "DreamCache" in node["type"]:
                assert node["properties"]["cnr_id"] == project["project"]["name"]
    shipped = set(shipped_files())
    assert {"README.md", "node_list.json", "web/docs/ApplyDreamCache.md"} <= shipped
    assert not {"CONTRIBUTING.md", "docs/architecture.md", "noxfile.py"} & shipped


def test_the_list_for_comfyui_manager_has_every_node(server: ComfyUIServer) -> None:
    nodes = {
        name: definition["description"]
        for name, definition in server.object_info().items()
        if definition["python_module"] == "custom_nodes.dreamcache"
    }
    assert json.loads((ROOT / "node_list.json").read_text()) == nodes
