"""What a reference cache holds, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ..io.images import to_image
from ..reference.cache import ReferenceCache
from .contact_sheet import contact_sheet

SIDE = 256
"""Of each picture, in pixels."""
# How white what isn't read becomes.
_FADED = 0.8
# What is darker or brighter than all but so much of a layer is black or white.
_CUT = 0.01


def reference_sheet(references: ReferenceCache) -> Image.Image:
    """A row for each reference: its picture, if there is one, and the features of each layer in colours, pale where
    they aren't read.
    """
    rows: list[list[Image.Image | None]] = [[image] for image in references.images]
    for layer in references.layers:
        features = references.features(layer.name)
        for row, colours, kept in zip(rows, feature_colours(features), references.kept(layer.name), strict=True):
            pale = torch.lerp(colours, torch.ones_like(colours), _FADED)
            image = to_image(torch.where(kept.unsqueeze(-1).to(colours.device), colours, pale))
            scale = SIDE / max(image.size)
            # To squares, one a token: the sheet would blur them.
            size = (round(image.width * scale), round(image.height * scale))
            row.append(image.resize(size, Image.Resampling.NEAREST))
    columns = ["reference", *(f"{layer.name}, {layer.channels} channels" for layer in references.layers)]
    labels = [str(number) for number in range(1, len(rows) + 1)]
    return contact_sheet(rows, labels, columns, SIDE)


def feature_colours(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Features of a layer, each (channels, height, width), as colours of 0…1, (height, width, 3) float32.

    Red, green and blue are the first three principal components of all of them together, so that what the model sees
    alike in two references has one colour.
    """
    tokens = torch.cat([each.flatten(1).T for each in features]).float()
    tokens = tokens - tokens.mean(0)
    directions = torch.linalg.svd(tokens, full_matrices=False).Vh[:3]
    # A direction and its opposite are the same component: the one along which most channels rise.
    directions = directions * torch.where(directions.sum(1, keepdim=True) < 0, -1.0, 1.0)
    components = tokens @ directions.T
    low, high = (torch.quantile(components, cut, dim=0) for cut in (_CUT, 1 - _CUT))
    colours = ((components - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)
    parts = colours.split([each[0].numel() for each in features])
    return [part.reshape(*each.shape[1:], 3) for part, each in zip(parts, features, strict=True)]
