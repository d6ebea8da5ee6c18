"""DreamCache Preview Reference Cache: the picture beside the features of every layer."""

from __future__ import annotations

from dreamcache.dreamcache_core.figures.reference_sheet import CAPTION, COLUMNS
from dreamcache.dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet
from harness.comfyui_server import ComfyUIServer
from PIL import Image
from support.graph import Scene


def test_the_node_shows_the_picture_beside_every_layer(server: ComfyUIServer) -> None:
    scene = Scene(server)
    other = scene.encode(resolution=64)
    named = {"references.reference_1": scene.reference, "references.reference_2": other}
    both = scene.add("DreamCacheCombineReferences", mode="concatenate", strengths="", **named)
    scene.add("DreamCachePreviewReferenceCache", reference_cache=both)
    (shown,) = (output for output in server.run(scene.prompt).outputs.values() if "images" in output)
    sheet = Image.open(server.download(shown["images"][0], server.base / "sheet.png"))
    # A reference and 8 layers each, with labels of one and of two lines.
    tiles = [Tile("reference", None), *[Tile("coarse\noutput_blocks.4.1", None)] * 8]
    expected = TileSheet(CAPTION, [Section("reference 1", tiles)] * 2, COLUMNS)
    assert sheet.width == expected.width
    for places, resolution in zip(expected.boxes(), (128, 64), strict=True):
        crops = [sheet.crop(place).convert("RGB") for place in places]
        colours = [crop.getcolors(2**16) or [] for crop in crops]
        # The picture has many, and a layer at most one for each of its tokens.
        assert len(colours[0]) > 1000
        assert [len(each) for each in colours[1:]] == [
            (resolution // pixels) ** 2 for pixels in (8, 16, 32, 64, 32, 16, 16, 8)
        ]
