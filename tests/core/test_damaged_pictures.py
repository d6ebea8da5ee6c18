"""Damaged pictures and lists of pictures: each is read, or named in a sentence.

`pytest tests/core/test_damaged_pictures.py --damaged-files 5000` tries that many for each reader.
"""

from __future__ import annotations

import io
import json
import resource
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from dreamcache.dreamcache_core.evaluation.generated_images import read_manifest, read_settings
from dreamcache.dreamcache_core.io.images import read_image, read_mask, to_tensor
from dreamcache.dreamcache_core.io.names import picture_formats
from PIL import Image
from support.damage import damage_bytes, damage_json, dump_json, verdict

CASES = Path(__file__).resolve().parents[1] / "support" / "cases"
SIZE = (96, 64)
MEMORY = 2**30


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--damaged-files")


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def pictures() -> list[bytes]:
    """Those of the cases, and one of each format."""
    contents = [path.read_bytes() for path in sorted(CASES.iterdir())]
    for picture, kinds in (
        (Image.open(CASES / "plain.png").convert("RGB"), sorted(picture_formats())),
        (Image.open(CASES / "grey16.png"), ["TIFF"]),
        (Image.open(CASES / "plain.png").convert("F"), ["TIFF"]),
    ):
        for kind in kinds:
            content = io.BytesIO()
            picture.save(content, kind)
            contents.append(content.getvalue())
    return contents


def read_picture(content: Callable[[], bytes]) -> torch.Tensor:
    return to_tensor(read_image(content, "picture"))


def test_a_damaged_picture_is_read_or_named(count: int) -> None:
    sound, read = pictures(), 0
    for number in range(count):
        random = Random(f"picture/{number}")
        content = partial(bytes, damage_bytes(random.choice(sound), random))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage that it reads over.
            problems = [
                verdict(partial(read_picture, content)),
                verdict(partial(read_mask, content, "mask", SIZE)),
            ]
        assert all(problem is None or problem.startswith(("picture ", "mask ")) for problem in problems)
        read += problems == [None, None]
    assert 0 < read < count


def test_a_damaged_manifest_is_read_or_named(count: int, tmp_path: Path) -> None:
    line = {"file": "dog2/00_0.png", "subject": "dog2", "prompt": "a dog", "seed": 0}
    for number in range(count):
        random = Random(f"manifest/{number}")
        damaged = dump_json(damage_json(line, random), random).encode(errors="surrogatepass")
        if random.randrange(2):
            damaged = damage_bytes(json.dumps(line).encode(), random)
        for name, read in (("manifest.jsonl", read_manifest), ("settings.json", read_settings)):
            (tmp_path / name).write_bytes(damaged)
            problem = verdict(partial(read, tmp_path))
            assert problem is None or str(tmp_path / name) in problem
