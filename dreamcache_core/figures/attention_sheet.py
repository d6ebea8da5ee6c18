"""The attention sheet: attention maps as colours over the image and over its references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from PIL import Image

from ..io.images import to_image, to_tensor
from ..unet import Group
from .attention_maps import AttentionMap, mean_map
from .tile_sheet import Section, Tile, TileSheet

SIDE = 192
"""The longer side of each image in the sheet, in pixels."""
CAPTION = (
    "Each place of the image has the colour of the place in the reference that it attends to: see the colour key. "
    "In the heat maps, bright places get the most attention."
)
# RGB, 0…1, of positions at the reference's four corners: [[top left, top right], [bottom left, bottom right]].
_CORNERS = torch.tensor([[[1.0, 0.15, 0.2], [1.0, 0.9, 0.0]], [[0.2, 0.25, 1.0], [0.0, 0.85, 0.4]]])
# RGB, 0…1, of the heat map, from no attention to most.
_HEAT = torch.tensor([[0.0, 0.0, 0.1], [0.35, 0.05, 0.45], [0.85, 0.2, 0.3], [1.0, 0.65, 0.1], [1.0, 1.0, 0.75]])

# The share of a reference's tokens that may exceed the heat map's range.
_CLIPPED = 0.02
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class ReferenceAttention:
    """The attention of one image's tokens to one reference at one noise level.

    `label`: names the reference and the noise level. `reference`: its image, if there is one. `kept`: (height, width)
    bool, in the finest layer: the tokens that are attended to. `maps`: layer name → map; empty if no layer attends to
    the reference at this noise level.
    """

    label: str
    reference: Image.Image | None
    kept: torch.Tensor
    maps: Mapping[str, AttentionMap]


def attention_sheet(
    image: Image.Image, attention: Sequence[ReferenceAttention], groups: Mapping[str, Group]
) -> Image.Image:
    """The attention sheet as a picture."""
    return attention_tiles(image, attention, groups).draw()


def attention_tiles(
    image: Image.Image, attention: Sequence[ReferenceAttention], groups: Mapping[str, Group]
) -> TileSheet:
    """Two sections for each reference, with a tile for the mean of all layers and for the mean of each group.

    In the first, the colour at each place of the image shows which position in the reference it attends to. The second
    has the reference: as the legend of these colours, and as a heat map of the attention that it receives.
    `groups`: layer name → its group.
    """
    names = [name for name in get_args(Group) if name in groups.values()]
    sections = []
    for each in attention:
        if not each.maps:
            sections.append(Section(f"{each.label}: the reference isn't active", [Tile("image", image)]))
            continue
        in_groups = {name: [found for layer, found in each.maps.items() if groups[layer] == name] for name in names}
        means = {"all layers": mean_map(list(each.maps.values()))}
        means |= {name: mean_map(found) for name, found in in_groups.items() if found}
        labels = ["all layers", *names]
        maps = [means.get(label) for label in labels]
        height, width = each.kept.shape
        reference = each.reference or Image.new("RGB", (width, height), "silver")
        looks = [_overlay(image, *_position_colours(found)) if found else None for found in maps]
        heat = [_overlay(reference, *_heat_map(found)) if found else None for found in maps]
        sections += [
            Section(f"{each.label}: where the image looks", _tiles(("image", *labels), (image, *looks))),
            Section(
                f"{each.label}: where the reference is looked at",
                _tiles(("colour key", *labels), (_overlay(reference, *_legend(each.kept)), *heat)),
            ),
        ]
    return TileSheet(CAPTION, sections, columns=2 + len(names), side=SIDE)


def _tiles(labels: Sequence[str], pictures: Sequence[Image.Image | None]) -> list[Tile]:
    return [Tile(label, picture) for label, picture in zip(labels, pictures, strict=True)]


# The three kinds of overlay: colours (height, width, 3) and their opacity (height, width), of each token, 0…1.


def _position_colours(attention: AttentionMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the image: each token has the colour of its attention's mean position, as opaque as its share is large."""
    share, down, right = attention.over_image.unbind(-1)
    divisor = share.clamp(min=_TINY)
    return _colours_at(down / divisor, right / divisor), share / divisor.max()


def _legend(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the reference: each kept token has the colour of its position."""
    height, width = kept.shape
    down, right = ((torch.arange(length) + 0.5) / length for length in (height, width))
    return _colours_at(*torch.meshgrid(down, right, indexing="ij")), kept.float()


def _heat_map(attention: AttentionMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the reference: each token has the colour of the attention that it receives."""
    # A single token can receive more than all others; scaled to it, all others would be dark.
    received = attention.over_reference
    brightest = torch.quantile(received, 1 - _CLIPPED).clamp(min=float(received.max()) / 10 + _TINY)
    amount = (received / brightest).clamp(max=1)
    steps = amount * (len(_HEAT) - 1)
    below = steps.long().clamp(max=len(_HEAT) - 2)
    return torch.lerp(_HEAT[below], _HEAT[below + 1], (steps - below).unsqueeze(-1)), 0.3 + 0.6 * amount


def _colours_at(down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The colours of positions in a reference, mixed from those of its corners. `down`, `right`: 0…1. (…, 3), 0…1."""
    down, right = down.unsqueeze(-1), right.unsqueeze(-1)
    top, bottom = _CORNERS
    return torch.lerp(torch.lerp(top[0], top[1], right), torch.lerp(bottom[0], bottom[1], right), down)


def _overlay(image: Image.Image, colours: torch.Tensor, opacity: torch.Tensor) -> Image.Image:
    """The image in greyscale, with each token's colour over it."""
    scale = SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    grey = to_tensor(image.convert("L").resize(size)).unsqueeze(-1)
    # Nearest keeps each token a square.
    squares = to_image(torch.cat([colours, opacity.unsqueeze(-1)], dim=-1)).resize(size, Image.Resampling.NEAREST)
    colours, opacity = to_tensor(squares).split((3, 1), dim=-1)
    return to_image(torch.lerp(0.3 * grey, colours * (0.5 + 0.5 * grey), opacity))
