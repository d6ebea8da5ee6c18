"""Adapter files that change while they are in use: the server lives, and each picture is that of one file.

`pytest tests/server/test_changing_files.py --overwrites 50` changes them that many times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter, save_adapter
from harness.comfyui_server import ComfyUIServer, WorkflowError
from support.graph import Scene, adapter_file


def copy_over(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


def write_in_place(path: Path, content: bytes) -> None:
    """And leave the time stamp as it was."""
    status = path.stat()
    with path.open("r+b") as file:
        for start in range(0, len(content), 100_000):
            file.write(content[start : start + 100_000])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut_and_mend(path: Path, content: bytes) -> None:
    os.truncate(path, 5000)
    time.sleep(0.3)
    path.write_bytes(content)


CHANGES: list[Callable[[Path, bytes], None]] = [copy_over, replace, write_in_place, cut_and_mend]


def draw(server: ComfyUIServer, name: str) -> torch.Tensor:
    scene = Scene(server)
    scene.adapter = scene.add("DreamCacheAdapterLoader", adapter_name=name)
    return scene.sample(scene.apply(scene.model))


@pytest.fixture
def two_files(server: ComfyUIServer) -> tuple[Path, list[bytes]]:
    """The path of an adapter, and the two contents that it has in turn, of the same size."""
    sound = server.base / "models" / "dreamcache" / adapter_file(server, "sd15")
    path = sound.with_name("changing_in_use.safetensors")
    adapter = load_adapter(sound).adapter
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(-0.5)
    save_adapter(path, adapter)
    contents = [sound.read_bytes(), path.read_bytes()]
    assert len(contents[0]) == len(contents[1])
    return path, contents


def test_each_picture_is_that_of_one_file_whatever_happens_to_it_meanwhile(
    server: ComfyUIServer, two_files: tuple[Path, list[bytes]], request: pytest.FixtureRequest
) -> None:
    path, contents = two_files
    pictures = []
    for content in contents:
        path.write_bytes(content)
        pictures.append(draw(server, path.name))
    assert not torch.allclose(pictures[0], pictures[1])

    random, drawn = Random(2), 0
    with ThreadPoolExecutor(1) as pool:
        for number in range(request.config.getoption("--overwrites")):
            delay, change = random.uniform(0, 1), CHANGES[number % len(CHANGES)]
            content = contents[number // len(CHANGES) % 2]

            def later(delay: float = delay, change: Callable = change, content: bytes = content) -> None:
                time.sleep(delay)
                change(path, content)

            changing = pool.submit(later)
            try:
                picture = draw(server, path.name)
            except WorkflowError as error:
                # It was cut short when it was read.
                if path.name not in str(error) or "The server died" in str(error):
                    raise
            else:
                drawn += 1
                assert any(torch.equal(picture, whole) for whole in pictures), (number, change)
            changing.result()
    assert drawn
    path.write_bytes(contents[0])
    assert torch.equal(draw(server, path.name), pictures[0])


def test_a_file_with_the_time_and_size_of_the_one_before_is_read_again(
    server: ComfyUIServer, two_files: tuple[Path, list[bytes]]
) -> None:
    path, contents = two_files
    pictures = []
    for content in contents:
        write_in_place(path, content)
        pictures.append(draw(server, path.name))
    assert not torch.allclose(pictures[0], pictures[1])
