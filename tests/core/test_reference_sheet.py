"""The preview of a reference: what is alike to the model has one colour, beside the picture that it is of."""

from __future__ import annotations

from dataclasses import replace

import torch
from dreamcache.dreamcache_core.figures.reference_sheet import feature_colours, reference_sheet
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache
from dreamcache.dreamcache_core.unet import TransformerLayer
from harness.comfyui_server import ComfyUIServer
from PIL import Image
from support.graph import Scene


def test_alike_features_have_like_colours_in_every_reference_and_others_other_ones() -> None:
    torch.manual_seed(0)
    subject, background = torch.randn(2, 40, 1, 1)
    features = []
    for height, width in ((6, 8), (5, 5)):
        inside = torch.zeros(height, width)
        inside[1:3, 1:4] = 1
        noise = 0.01 * torch.randn(40, height, width)
        features.append(subject * inside + background * (1 - inside) + noise)
    wide, square = feature_colours(features)
    assert (wide.shape, square.shape) == ((6, 8, 3), (5, 5, 3))
    assert float(wide.min()) >= 0 and float(wide.max()) <= 1
    # The first component is all that tells the one from the other; what is left is noise.
    for colours in (wide, square):
        first = colours[..., 0]
        assert (first[1:3, 1:4].mean() - first[4:].mean()).abs() > 0.9
    assert (wide[1:3, 1:4, 0].mean() - square[1:3, 1:4, 0].mean()).abs() < 0.05
    assert torch.equal(feature_colours(features)[0], wide)


def test_a_constant_layer_has_one_colour() -> None:
    (colours,) = feature_colours([torch.ones(8, 4, 4)])
    assert len(colours.reshape(-1, 3).unique(dim=0)) == 1


def test_what_a_mask_leaves_out_is_pale() -> None:
    torch.manual_seed(0)
    layer = TransformerLayer("middle_block.1", channels=8, heads=2)
    whole = ReferenceBatch({layer.name: torch.randn(1, 8, 4, 4)}, "SD1.x", (layer,), (4, 4), timestep=1, prompt="")
    left = torch.zeros(1, 4, 4)
    left[..., :2] = 1
    caches = (ReferenceCache((each,)) for each in (whole, replace(whole, subject=left)))
    plain, masked = (to_tensor(reference_sheet(cache))[-264:-8] for cache in caches)
    x = 272 + 264
    assert torch.equal(masked[:, x : x + 128], plain[:, x : x + 128])
    assert masked[:, x + 128 : x + 256].min() > 0.75 > plain[:, x + 128 : x + 256].min()


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
