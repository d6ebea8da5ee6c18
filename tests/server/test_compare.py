"""DreamCache Compare: every place of its table holds what a graph draws with these settings."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.figures.comparison import make_comparison, parse_values
from dreamcache.dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet
from dreamcache.dreamcache_core.io.images import to_tensor
from harness.comfyui_server import ComfyUIServer
from PIL import Image
from support.graph import Scene, failure

SETTINGS: dict[str, Any] = {"cfg": "4", "start_percent": "0", "end_percent": "1", "steps": "2"}
SETTINGS |= {"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "cell_size": 128}


def test_columns_have_the_first_setting_with_several_values_and_rows_all_combinations_of_the_rest() -> None:
    table = make_comparison({"strength": (1.0,), "guidance": (1.0, 2.5), "seed": (0, 2**60 + 1), "steps": (4, 8)})
    assert table.column_labels == ["guidance 1", "guidance 2.5"]
    assert [(row["seed"], row["steps"]) for row in table.rows] == list(itertools.product((0, 2**60 + 1), (4, 8)))
    assert table.row_labels[2] == f"seed {2**60 + 1}, steps 4"
    assert all(row["strength"] == 1 for row in table.rows)
    alone = make_comparison({"strength": (1.0,), "seed": (0,)})
    assert (alone.row_labels, alone.column_labels) == ([""], [""])


@pytest.mark.parametrize("text", ["", "a lot", "0, 3", "1 -1", "0.5"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(DreamCacheError, match="whole numbers from 0 to 2"):
        parse_values("seed", text, 0, 2, whole=True)


def test_every_place_holds_what_apply_dreamcache_draws_with_its_settings(server: ComfyUIServer) -> None:
    scene = Scene(server)
    latent = scene.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    given = {"model": scene.model, "adapter": scene.adapter, "reference_cache": scene.reference, "vae": scene.vae}
    given |= {"positive": scene.positive, "negative": scene.negative, "latent_image": latent}
    given |= {**SETTINGS, "strength": "0, 1", "image_guidance": "1, 2", "seed": "5"}
    scene.add("DreamCacheCompare", **given)
    (grid,) = server.run(scene.prompt).images
    sheet = Image.open(server.download(grid, server.base / "grid.png")).convert("RGB")
    rows = [Section("image_guidance 1", [Tile("strength 0", None)] * 2)] * 2
    places = TileSheet("", rows, columns=2, side=128)
    assert sheet.width == places.width

    def drawn(strength: float, guidance: float) -> torch.Tensor:
        scene = Scene(server)
        latent = scene.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        model = scene.apply(scene.model, strength=strength, image_guidance=guidance)
        sampled = scene.sampler(model, latent_image=latent, steps=2)
        scene.add("SaveImage", images=scene.add("VAEDecode", samples=sampled, vae=scene.vae), filename_prefix="alone")
        (image,) = server.run(scene.prompt).images
        return to_tensor(Image.open(server.download(image, server.base / "alone.png")))

    pictures = {}
    for (row, guidance), (column, strength) in itertools.product(enumerate((1.0, 2.0)), enumerate((0.0, 1.0))):
        pictures[strength, guidance] = to_tensor(sheet.crop(places.boxes()[row][column]))
    for (strength, guidance), picture in pictures.items():
        torch.testing.assert_close(picture, drawn(strength, guidance), rtol=0, atol=2 / 255)
    assert torch.equal(pictures[0.0, 1.0], pictures[0.0, 2.0])
    assert not torch.equal(pictures[1.0, 1.0], pictures[1.0, 2.0])

    scene.prompt[max(scene.prompt, key=int)]["inputs"]["strength"] = "3"
    assert "write numbers from 0 to 2" in failure(lambda: server.run(scene.prompt))
