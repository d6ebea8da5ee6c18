"""The preview of a reference: features that are alike have one colour."""

from __future__ import annotations

from dataclasses import replace

import torch
from dreamcache.dreamcache_core.figures.reference_sheet import feature_colours, reference_tiles
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache
from dreamcache.dreamcache_core.unet import TransformerLayer


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
    pictures = [reference_tiles(cache).sections[0].tiles[1].picture for cache in caches]
    plain, masked = (to_tensor(picture) for picture in pictures if picture)
    assert torch.equal(masked[:, :128], plain[:, :128])
    assert masked[:, 128:].min() > 0.75 > plain[:, 128:].min()
