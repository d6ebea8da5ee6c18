"""Triplets made in a real server: what a graph saves is what a trainer reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.training.triplets import open_triplets
from harness import environment
from harness.comfyui_server import ComfyUIServer, Result
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image
from support.graph import Graph, Link, failure

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
WHITE, BLACK = 0xFFFFFF, 0
SEED = 1
"""One that drops no prompt."""


@pytest.fixture(scope="module")
def pictures(server: ComfyUIServer, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures that Load Image finds by their names."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "left.png", folder / "right.png"]
    for path, left in zip(paths, (100, 200), strict=True):
        Image.open(PHOTOGRAPH).crop((left, 50, left + SIZE, 50 + SIZE)).save(path)
        server.upload_image(path)
    return paths


def load(graph: Graph, paths: list[Path]) -> Link:
    return batch(graph, [graph.add("LoadImage", image=path.name) for path in paths])


def masks(graph: Graph, *colours: int) -> Link:
    plain = [graph.add("EmptyImage", width=SIZE, height=SIZE, batch_size=1, color=colour) for colour in colours]
    return graph.add("ImageToMask", image=batch(graph, plain), channel="red")


def batch(graph: Graph, images: list[Link]) -> Link:
    if len(images) == 1:
        return images[0]
    return graph.add("BatchImagesNode", **{f"images.image{number}": image for number, image in enumerate(images)})


def save(server: ComfyUIServer, paths: list[Path], folder: str, *colours: int, prompt: str = "a cup") -> Result:
    graph = Graph(server)
    image, mask = load(graph, paths), masks(graph, *colours)
    graph.add("DreamCacheSaveTriplet", image=image, mask=mask, prompt=prompt, folder=folder)
    return server.run(graph.prompt)


def text(result: Result) -> str:
    (said,) = (output["text"][0] for output in result.outputs.values() if "text" in output)
    return said


def pixels(path: Path) -> torch.Tensor:
    return to_tensor(Image.open(path).convert("RGB"))


def test_what_a_graph_saves_is_what_is_trained_on(server: ComfyUIServer, pictures: list[Path], tmp_path: Path) -> None:
    result = save(server, pictures, "triplets/旗 1", WHITE, WHITE, prompt="eine Tasse, 杯子")
    triplets = open_triplets(server.base / "output" / "triplets" / "旗 1").check()
    assert triplets.names == ("00000/00000001", "00000/00000002")
    assert triplets.problems == ()
    for index, path in enumerate(pictures):
        triplet = triplets.load(index, SIZE, SEED, 0)
        assert torch.equal(triplet.target, pixels(path))
        assert triplet.prompt == "eine Tasse, 杯子"
    assert text(result) == "Saved 00000/00000001 … 00000/00000002."
    # The preview shows the files themselves.
    shown = [server.download(image, tmp_path / image["filename"]) for image in result.images]
    assert [pixels(path).tolist() for path in shown] == [pixels(path).tolist() for path in pictures]


def test_a_second_run_adds_to_the_first_and_leaves_it_alone(server: ComfyUIServer, pictures: list[Path]) -> None:
    folder = server.base / "output" / "again"
    save(server, pictures[:1], "again", WHITE, prompt="first")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}
    save(server, pictures[1:], "again", WHITE, prompt="second")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    triplets = open_triplets(folder)
    assert [triplets.load(index, SIZE, SEED, 0).prompt for index in range(len(triplets))] == ["first", "second"]


def test_two_servers_that_write_into_one_folder_lose_nothing(server: ComfyUIServer, pictures: list[Path]) -> None:
    output = server.base / "output"
    arguments = ["--cpu", "--output-directory", str(output)]
    prompts = [f"picture {number}" for number in range(10)]
    with ComfyUIServer(environment.ensure(), {"dreamcache": ROOT}, arguments=arguments) as other:
        for path in pictures:
            other.upload_image(path)

        def save_all(mine: ComfyUIServer, name: str) -> None:
            for prompt in prompts:
                save(mine, pictures, "shared", WHITE, WHITE, prompt=f"{name} {prompt}")

        with ThreadPoolExecutor() as pool:
            list(pool.map(save_all, (server, other), ("one", "other")))
    triplets = open_triplets(output / "shared").check()
    assert triplets.problems == ()
    captions = sorted(path.read_text() for path in output.glob("shared/*/*_caption.txt"))
    assert captions == sorted(f"{name} {prompt}" for name in ("one", "other") for prompt in prompts * 2)
    assert len(triplets) == len(captions)
    assert not list(output.glob("shared/.saving-*"))


def test_pictures_whose_mask_is_black_are_left_out_and_the_queue_goes_on(
    server: ComfyUIServer, pictures: list[Path]
) -> None:
    said = text(save(server, pictures, "black", WHITE, BLACK))
    assert said == "Saved 00000/00000001.\nImage 2 was not saved because its mask is black."
    assert text(save(server, pictures[:1], "black", BLACK)) == "Image 1 was not saved because its mask is black."
    assert len(open_triplets(server.base / "output" / "black")) == 1


def test_a_reference_is_saved_beside_each_picture(server: ComfyUIServer, pictures: list[Path]) -> None:
    graph = Graph(server)
    reference = load(graph, pictures[1:])
    inputs = {"image": load(graph, pictures), "mask": masks(graph, WHITE, WHITE), "reference": reference}
    graph.add("DreamCacheSaveTriplet", prompt="a cup", folder="references", **inputs)
    server.run(graph.prompt)
    triplets = open_triplets(server.base / "output" / "references")
    for index in range(2):
        assert torch.equal(triplets.load(index, SIZE, SEED, 0).reference, pixels(pictures[1]))


@pytest.mark.parametrize("folder", ["../outside", "a/../../outside", "/tmp/outside", "", "."])
def test_folders_outside_output_are_refused(server: ComfyUIServer, pictures: list[Path], folder: str) -> None:
    message = failure(lambda: save(server, pictures[:1], folder, WHITE))
    assert "is not a folder in ComfyUI's output folder" in message
    assert not (server.base / "outside").exists()


def test_a_folder_name_from_another_node_is_refused_too(server: ComfyUIServer, pictures: list[Path]) -> None:
    graph = Graph(server)
    folder = graph.add("PrimitiveString", value="../outside")
    inputs = {"image": load(graph, pictures[:1]), "mask": masks(graph, WHITE), "folder": folder}
    graph.add("DreamCacheSaveTriplet", prompt="a cup", **inputs)
    assert "is not a folder in ComfyUI's output folder" in failure(lambda: server.run(graph.prompt))


def test_what_makes_no_sample_is_refused(server: ComfyUIServer, pictures: list[Path]) -> None:
    message = failure(lambda: save(server, pictures, "refused", WHITE))
    assert "There are 1 masks for 2 images: connect one mask for each image" in message
    assert "The prompt is empty" in failure(lambda: save(server, pictures[:1], "refused", WHITE, prompt=" "))
    graph = Graph(server)
    nothing = graph.add("MiniatureImages", count=0, height=SIZE, width=SIZE, channels=3)
    inputs = {"image": nothing, "mask": masks(graph, WHITE), "prompt": "a cup", "folder": "refused"}
    graph.add("DreamCacheSaveTriplet", **inputs)
    assert "The image batch is empty" in failure(lambda: server.run(graph.prompt))
    (server.base / "output" / "taken").touch()
    message = failure(lambda: save(server, pictures[:1], "taken", WHITE))
    assert "taken cannot be written: a file has the name of a folder" in message
