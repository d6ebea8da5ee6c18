"""DreamCache Preview Reference Cache: the picture beside the features of every layer."""

from __future__ import annotations

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
    # A column of labels, one of pictures, and one for each of 8 layers, each 256 pixels wide with a gap of 8.
    assert sheet.width == 256 + 16 + 9 * 264
    for row, resolution in enumerate((128, 64)):
        top = sheet.height - (2 - row) * 264
        places = [(272 + 264 * column, top) for column in range(9)]
        crops = [sheet.crop((x, y, x + 256, y + 256)).convert("RGB") for x, y in places]
        colours = [crop.getcolors(2**16) or [] for crop in crops]
        # The picture has many, and a layer at most one for each of its tokens.
        assert len(colours[0]) > 1000
        assert [len(each) for each in colours[1:]] == [
            (resolution // pixels) ** 2 for pixels in (8, 16, 32, 64, 32, 16, 16, 8)
        ]
