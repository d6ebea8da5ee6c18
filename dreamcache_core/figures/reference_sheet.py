"""The reference sheet: the cached features of each reference as colours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ..io.images import to_image
from ..reference.cache import ReferenceCache
from ..unet import group_of
from .tile_sheet import Section, Tile, TileSheet

SIDE = 256
"""The longer side of each image in the sheet, in pixels."""
COLUMNS = 4
CAPTION = (
    "Places with the same colour look alike to the model. Pale places are masked and not used. "
    "Coarse layers hold the shape, fine ones the texture."
)
# How far tokens that aren't attended to are faded to white, 0…1.
_FADED = 0.8
# The share of a layer's tokens that is clipped at either end of each colour channel.
_CLIPPED = 0.01


def reference_sheet(references: ReferenceCache) -> Image.Image:
    """The reference sheet as a picture."""
    return reference_tiles(references).draw()


def reference_tiles(references: ReferenceCache) -> TileSheet:
    """A section for each reference: its image, if there is one, and each layer's features as colours.

    Tokens that aren't attended to are pale.
    """
    rows = [[Tile("reference", image)] for image in references.images]
    for layer in references.layers:
        features = references.features(layer.name)
        for row, colours, kept in zip(rows, feature_colours(features), references.kept(layer.name), strict=True):
            pale = torch.lerp(colours, torch.ones_like(colours), _FADED)
            image = to_image(torch.where(kept.unsqueeze(-1).to(colours.device), colours, pale))
            scale = SIDE / max(image.size)
            # Nearest keeps each token a square; the sheet's own resizing would blur them.
            size = (round(image.width * scale), round(image.height * scale))
            label = f"{group_of(layer, references.layers)}\n{layer.name}"
            row.append(Tile(label, image.resize(size, Image.Resampling.NEAREST)))
    titles = [f"reference {number}" if len(rows) > 1 else "" for number in range(1, len(rows) + 1)]
    return TileSheet(CAPTION, [Section(*each) for each in zip(titles, rows, strict=True)], COLUMNS, SIDE)


def feature_colours(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Map a layer's features to colours: for each reference, (channels, height, width) → (height, width, 3), 0…1.

    Red, green and blue are the first three principal components over the tokens of all references, so that similar
    features have similar colours in all of them. Float32.
    """
    tokens = torch.cat([each.flatten(1).T for each in features]).float()
    tokens = tokens - tokens.mean(0)
    directions = torch.linalg.svd(tokens, full_matrices=False).Vh[:3]
    # The sign of a component is arbitrary: choose the one with a positive sum, so that colours are reproducible.
    directions = directions * torch.where(directions.sum(1, keepdim=True) < 0, -1.0, 1.0)
    components = tokens @ directions.T
    low, high = (torch.quantile(components, share, dim=0) for share in (_CLIPPED, 1 - _CLIPPED))
    colours = ((components - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)
    parts = colours.split([each[0].numel() for each in features])
    return [part.reshape(*each.shape[1:], 3) for part, each in zip(parts, features, strict=True)]
