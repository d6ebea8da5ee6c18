"""The routes that describe files and trainings to the front end: from headers alone, and of no other files."""

from __future__ import annotations

import http.client
import io
import json
import os
import pickle
import shutil
import urllib.request
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
import torch
from dreamcache.dreamcache_core.adapter.strengths import CURVES
from dreamcache.dreamcache_core.io.base_checkpoint import checkpoint_family
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache, Source
from dreamcache.dreamcache_core.reference.file import save_references
from dreamcache.dreamcache_core.reference.thumbnails import make_thumbnail
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.validation import Validation
from dreamcache.dreamcache_core.unet import TransformerLayer
from harness import environment
from harness.comfyui_server import ComfyUIServer
from harness.workflow_prompt import OWN_ATTENTION
from PIL import Image
from safetensors.torch import save_file
from support.damage import damage_tensor_file, damage_zip
from support.graph import adapter_file

AUTHORS_FILE = Path(__file__).parents[1] / "support" / "conformance" / "official_format_sd21_mini.pt"


def ask(server: ComfyUIServer, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer. The path goes to the server as it stands, dots and all."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_an_adapter_is_described_without_being_loaded(server: ComfyUIServer) -> None:
    name = adapter_file(server, "sd15")
    _, description = ask(server, f"/dreamcache/adapters/{name}")
    assert description == {
        "size": (server.base / "models" / "dreamcache" / name).stat().st_size,
        "format": "DreamCache adapter",
        "base_model": "a U-Net of 32 channels and 48-wide prompts",
        "layers": ["middle_block.1", *(f"output_blocks.{number}.1" for number in (4, 6, 8, 10))],
        "parameters": 253_568,
        "provenance": [],
        "problem": None,
    }
    assert ask(server, "/api/dreamcache/adapters")[1][name] == description


def test_a_file_that_cannot_be_used_is_listed_with_the_reason(server: ComfyUIServer) -> None:
    folder = server.base / "models" / "dreamcache" / "odd"
    folder.mkdir(exist_ok=True)
    good = folder.parent / adapter_file(server, "sd15")
    (folder / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    (folder / "empty.safetensors").touch()
    (folder / "random.safetensors").write_bytes(os.urandom(5000))
    save_file({"lora_up.weight": torch.zeros(1)}, folder / "lora.safetensors")
    for number, header in enumerate(["[]", '{"base_model": "SD1.x", "layers": [{"width": 3}]}', "{}"]):
        metadata = {"format": "dreamcache.adapter", "version": "1", "header": header}
        save_file({"a": torch.zeros(1)}, folder / f"header{number}.safetensors", metadata)
    (folder / "nothing.pt").write_bytes(b"nothing")
    (folder / "code.pt").write_bytes(pickle.dumps(print))
    try:
        _, listed = ask(server, "/dreamcache/adapters")
        odd = {name.removeprefix("odd/"): listed[name] for name in listed if name.startswith("odd/")}
        for name in ("cut", "empty", "random"):
            assert "is damaged or incomplete" in odd[f"{name}.safetensors"]["problem"]
        assert "is a LoRA" in odd["lora.safetensors"]["problem"]
        for number in range(3):
            assert "has a damaged header" in odd[f"header{number}.safetensors"]["problem"]
        assert "is damaged or incomplete" in odd["nothing.pt"]["problem"]
        assert "was not opened because it contains more than tensors" in odd["code.pt"]["problem"]

        shutil.copyfile(good, folder / "cut.safetensors")
        assert ask(server, "/dreamcache/adapters/odd/cut.safetensors")[1]["problem"] is None
    finally:
        shutil.rmtree(folder)


def test_a_saved_reference_is_described_and_its_picture_shown_without_its_features(
    server: ComfyUIServer, tmp_path: Path
) -> None:
    folder = server.base / "models" / "dreamcache_references" / "told"
    layers = (TransformerLayer("middle_block.1", 8, 8),)
    pictures = [make_thumbnail(Image.new("RGB", (40, 30), colour)) for colour in ("red", "blue")]
    source = Source("ab" * 32, patched=False, thumbnails=tuple(pictures))
    batch = ReferenceBatch({layers[0].name: torch.ones(2, 8, 1, 1)}, "SD1.x", layers, (8, 8), 1, "", source)
    cache = ReferenceCache((batch,))
    written = save_references(folder / "cup.safetensors", cache, "float8")
    (folder / "cut.safetensors").write_bytes((folder / "cup.safetensors").read_bytes()[:-1])
    header = {"format": "dreamcache.reference_cache", "version": "2", "header": '{"layers": 3}'}
    save_file({"a": torch.zeros(1)}, folder / "header.safetensors", header)
    try:
        _, listed = ask(server, "/dreamcache/references")
        description = listed["told/cup.safetensors"]
        assert description["description"] == written.description
        assert (description["base_model"], description["thumbnails"]) == ("SD1.x", 2)
        assert "is damaged or incomplete" in listed["told/cut.safetensors"]["problem"]
        assert "has a damaged header" in listed["told/header.safetensors"]["problem"]
        for number, picture in enumerate(pictures):
            with urllib.request.urlopen(f"{server.url}/dreamcache/thumbnails/{number}/told/cup.safetensors") as answer:
                assert answer.read() == picture
        assert ask(server, "/dreamcache/thumbnails/2/told/cup.safetensors")[0] == 404

        # Sent to the server, it is taken in once.
        save_references(tmp_path / "mug.safetensors", cache)
        content = (tmp_path / "mug.safetensors").read_bytes()
        for suffix in ("SAFETENSORS", "safetensors"):
            status, answer = ask(server, f"/dreamcache/references/told/mug.{suffix}", "POST", content)
            assert (status, answer) == (200, {"name": "told/mug_00001_.safetensors"})
        assert (folder / "mug_00001_.safetensors").read_bytes() == content
        before = sorted(server.base.rglob("*"))
        for name, body in (
            ("told/no.safetensors", b"nonsense"),
            ("told/no.txt", content),
            ("../no.safetensors", content),
        ):
            status, answer = ask(server, f"/dreamcache/references/{name}", "POST", body)
            assert (status, list(answer)) == (400, ["error"]), name
        assert sorted(server.base.rglob("*")) == before
    finally:
        shutil.rmtree(folder)


def test_a_training_tells_its_losses_and_samples_however_long_it_is(server: ComfyUIServer) -> None:
    training = TrainingFolder(server.base / "output" / "dreamcache_training" / "told")
    training.begin({})
    for step in range(1, 5001):
        training.add_loss(float("nan") if step == 5000 else 1 / step)
    training.add_sheet(Image.new("RGB", (4, 4)), 500)
    measured = {"step": 500, "right": 1.0, "other": 1.5, "none": 1.25, "error": 0.1}
    training.add_validation(Validation.from_json(measured))
    with (training.path / "validations.jsonl").open("a") as file:
        file.write("damaged\n")
    _, answer = ask(server, "/dreamcache/trainings/told")
    curve = answer["curve"]
    assert answer["validations"] == [{**measured, "gap": 0.5}]
    assert (curve["total"], len(curve["steps"]), curve["steps"][0], curve["steps"][-1]) == (5000, 512, 1, 5000)
    assert (curve["losses"][0], curve["losses"][-1], answer["samples"]) == (1.0, None, [500])
    curve = ask(server, "/dreamcache/trainings/told?first=11&last=13")[1]["curve"]
    assert curve["steps"] == [11, 12, 13]
    assert curve["losses"] == pytest.approx([1 / 11, 1 / 12, 1 / 13], rel=1e-4)
    with urllib.request.urlopen(f"{server.url}/dreamcache/samples/500/told") as sample:
        assert Image.open(sample).size == (4, 4)
    # One that will begin has none yet; no other folder is a training.
    assert ask(server, "/dreamcache/trainings/new")[1]["curve"]["total"] == 0
    for path in ("trainings/..%2F..", "samples/500/..%2Ftold", "samples/1/told"):
        assert ask(server, f"/dreamcache/{path}")[0] == 404


def test_the_curve_of_strengths_is_what_the_node_makes_of_its_inputs(server: ComfyUIServer) -> None:
    assert ask(server, "/dreamcache/curve?over_sampling=list&values=1,0.5")[1] == {"curve": [1, 0.5], "problem": None}
    assert ask(server, "/dreamcache/curve?over_sampling=ease%20in")[1]["curve"] == list(CURVES["ease in"])
    assert "is not a list of strengths" in ask(server, "/dreamcache/curve?over_sampling=list&values=3")[1]["problem"]
    assert ask(server, "/dreamcache/curve?over_sampling=gone")[0] == 400


def test_nothing_outside_the_models_folders_can_be_named(server: ComfyUIServer) -> None:
    secret = server.base / "models" / "secret.safetensors"
    shutil.copyfile(server.base / "models" / "dreamcache" / adapter_file(server, "sd15"), secret)
    link = server.base / "models" / "dreamcache" / "notes.txt"
    link.touch()
    names = ["../secret.safetensors", "./../secret.safetensors", str(secret), "notes.txt", "absent.safetensors"]
    for route in ("adapters", "references", "thumbnails/0", "checkpoints"):
        for name in (*names, *map(quote, names), *(quote(name, safe="") for name in names)):
            status, answer = ask(server, f"/dreamcache/{route}/{name}")
            assert (status, list(answer)) == (404, ["error"]), name


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "nothing"), ("GET", ""), ("POST", "adapters"), ("GET", "adapters/")]
)
def test_every_error_is_json(server: ComfyUIServer, method: str, path: str) -> None:
    status, answer = ask(server, f"/dreamcache/{path}", method)
    assert (status, list(answer)) == (404, ["error"])


def test_no_file_empties_a_list_and_no_request_gets_a_raw_error(server: ComfyUIServer) -> None:
    random, models = Random(1), server.base / "models"
    name = adapter_file(server, "sd15")
    adapter = (models / "dreamcache" / name).read_bytes()
    layers = (TransformerLayer("middle_block.1", 8, 8),)
    batch = ReferenceBatch({layers[0].name: torch.ones(2, 8, 1, 1)}, "SD1.x", layers, (8, 8), 1, "")
    save_references(models / "dreamcache_references" / "sound.safetensors", ReferenceCache((batch,)))
    reference = (models / "dreamcache_references" / "sound.safetensors").read_bytes()
    folders = {}
    for route, folder, content in (
        ("adapters", "dreamcache", adapter),
        ("references", "dreamcache_references", reference),
    ):
        folders[route] = models / folder / "hostile"
        folders[route].mkdir(parents=True)
        for number in range(60):
            (folders[route] / f"{number}.safetensors").write_bytes(damage_tensor_file(content, random))
        (folders[route] / "circle.safetensors").symlink_to("circle.safetensors")
    pickled = io.BytesIO()
    torch.save({"weight": torch.ones(20, 20)}, pickled)
    for number in range(20):
        (folders["adapters"] / f"{number}.pt").write_bytes(damage_zip(pickled.getvalue(), random))
    training = server.base / "output" / "dreamcache_training" / "hostile"
    (training / "samples" / "step_000000001.png").mkdir(parents=True)
    (training / "losses.txt").write_bytes(random.randbytes(1000))
    (training.parent / "circle").symlink_to("circle")
    try:
        for route, folder in folders.items():
            status, listed = ask(server, f"/dreamcache/{route}")
            assert status == 200
            sound = name if route == "adapters" else "sound.safetensors"
            assert listed[sound]["problem"] is None
            for path in folder.iterdir():
                described = ask(server, f"/dreamcache/{route}/hostile/{path.name}")
                # A link that leads in a circle isn't listed by ComfyUI.
                assert described[0] in (200, 404) and (described[0] == 404) == (path.name == "circle.safetensors")
        many, long = "9" * 5000, "x" * 3000
        for path in (
            *("trainings/hostile", "trainings/circle", f"trainings/{long}", "trainings/a%00b", "trainings/%ff%fe"),
            *(
                f"trainings/hostile?first={many}",
                "trainings/hostile?last=%D9%A3",
                "trainings/hostile?first=-5&last=999999",
            ),
            *(
                "samples/1/hostile",
                f"samples/{many}/hostile",
                f"samples/1/{long}",
                "samples/1/circle",
                "samples/1/a%00b",
            ),
            *(f"thumbnails/{many}/sound.safetensors", "thumbnails/0/hostile/0.safetensors", "thumbnails/0/a%00b"),
            *("adapters/a%00b", f"adapters/{long}", "references/%ff", "checkpoints/a%00b", "curve?over_sampling=%ff"),
            *(f"curve?over_sampling=list&values={many}", "curve?over_sampling=list&values=nan,inf,1e999"),
        ):
            status, answer = ask(server, f"/dreamcache/{path}")
            assert status in (200, 400, 404) and (status == 200 or list(answer) == ["error"]), (
                path[:80],
                status,
                answer,
            )
    finally:
        for folder in (*folders.values(), training):
            shutil.rmtree(folder)
        (training.parent / "circle").unlink()
        (models / "dreamcache_references" / "sound.safetensors").unlink()


def test_the_family_of_a_checkpoint_is_told(server: ComfyUIServer, tmp_path: Path) -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    reads_prompt = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    sdxl = {first: torch.zeros(320, 4, 3, 3), reads_prompt: torch.zeros(640, 2048)}
    checkpoint = server.base / "models" / "checkpoints" / "family.safetensors"
    save_file(sdxl, checkpoint)
    assert ask(server, f"/dreamcache/checkpoints/{checkpoint.name}") == (200, {"base_model": "SDXL"})
    for tensor, family in (("model.diffusion_model.double_blocks.0", "no U-Net such as SD1.x's"), ("weight", None)):
        save_file({tensor: torch.zeros(1)}, tmp_path / "other.safetensors")
        assert checkpoint_family(tmp_path / "other.safetensors") == family
    assert checkpoint_family(AUTHORS_FILE) is None


def test_a_thousand_adapters_are_each_read_once_to_be_listed(server: ComfyUIServer, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    content = (server.base / "models" / "dreamcache" / adapter_file(server, "sd15")).read_bytes()
    for number in range(1000):
        (folder / f"{number:04}.safetensors").write_bytes(content)
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path}\n  dreamcache: adapters\n")
    arguments = ["--cpu", "--extra-model-paths-config", str(config)]
    packs = {"dreamcache": environment.ROOT}
    with ComfyUIServer(environment.ensure(), packs, arguments=arguments) as own:
        reads = []
        for _ in range(2):
            before = own.reads()
            _, listed = ask(own, "/dreamcache/adapters")
            reads.append(own.reads() - before)
            assert len(listed) == 1000 + len(OWN_ATTENTION)
    first, later = reads
    # Of each file the length of its header and the header, once.
    assert first < 2100
    assert later < 100
