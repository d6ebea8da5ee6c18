"""Where a model looked in its references, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ..io.images import to_image, to_tensor
from .attention_maps import AttentionMap, mean_map
from .contact_sheet import contact_sheet

SIDE = 256
"""Of each picture, in pixels."""
# Of the places of a reference, at its corners; between them they mix, to grey in the middle.
_CORNERS = torch.tensor([[[1.0, 0.15, 0.2], [1.0, 0.9, 0.0]], [[0.2, 0.25, 1.0], [0.0, 0.85, 0.4]]])
# Of attention, from none to most.
_HEAT = torch.tensor([[0.0, 0.0, 0.1], [0.35, 0.05, 0.45], [0.85, 0.2, 0.3], [1.0, 0.65, 0.1], [1.0, 1.0, 0.75]])

# How many of a reference's tokens may be brighter than can be shown.
_CUT = 0.02
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Look:
    """What layers saw of one reference at one noise level.

    `label`: in words. `reference`: its picture, if there is one. `kept`: (height, width) of its tokens in the finest
    layer, True at those that are read. `maps`: of layers by their names; none if it isn't read then.
    """

    label: str
    reference: Image.Image | None
    kept: torch.Tensor
    maps: Mapping[str, AttentionMap]


def attention_sheet(picture: Image.Image, looks: Sequence[Look], layers: Mapping[str, str]) -> Image.Image:
    """Two rows for each look, and a column for all layers together and for each of them.

    The first row has the picture in the colours of the places of the reference that it looks at, the second the
    reference, in these colours and as a heat map. `layers`: labels of columns by the layers' names.
    """
    rows: list[list[Image.Image | None]] = []
    labels = []
    for look in looks:
        if not look.maps:
            rows.append([picture])
            labels.append(f"{look.label}: isn't read")
            continue
        maps = [mean_map(list(look.maps.values())), *(look.maps.get(layer) for layer in layers)]
        height, width = look.kept.shape
        reference = look.reference or Image.new("RGB", (width, height), "silver")
        rows.append([picture, *(_over(picture, *_whence(each)) if each else None for each in maps)])
        rows.append(
            [_over(reference, *_key(look.kept)), *(_over(reference, *_heat(each)) if each else None for each in maps)]
        )
        labels += [f"{look.label}: where the picture looks", f"{look.label}: where it is looked at"]
    return contact_sheet(rows, labels, ["", "all layers", *layers.values()], SIDE)


def _whence(seen: AttentionMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours of a picture's tokens, and how much they count: (height, width, 3) and (height, width)."""
    share, down, right = seen.seen.unbind(-1)
    some = share.clamp(min=_TINY)
    return _place_colours(down / some, right / some), share / some.max()


def _key(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a reference's tokens: what colour each place has."""
    height, width = kept.shape
    down, right = ((torch.arange(length) + 0.5) / length for length in (height, width))
    return _place_colours(*torch.meshgrid(down, right, indexing="ij")), kept.float()


def _heat(seen: AttentionMap) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for how much each of them is looked at."""
    # A single token may draw more than all others, which would all be dark beside it.
    most = torch.quantile(seen.looked_at, 1 - _CUT).clamp(min=float(seen.looked_at.max()) / 10 + _TINY)
    amount = (seen.looked_at / most).clamp(max=1)
    steps = amount * (len(_HEAT) - 1)
    below = steps.long().clamp(max=len(_HEAT) - 2)
    return torch.lerp(_HEAT[below], _HEAT[below + 1], (steps - below).unsqueeze(-1)), 0.3 + 0.6 * amount


def _place_colours(down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The colours of places of a reference, 0…1 of its height and width: (…, 3), 0…1."""
    down, right = down.unsqueeze(-1), right.unsqueeze(-1)
    top, bottom = _CORNERS
    return torch.lerp(torch.lerp(top[0], top[1], right), torch.lerp(bottom[0], bottom[1], right), down)


def _over(picture: Image.Image, colours: torch.Tensor, amount: torch.Tensor) -> Image.Image:
    """A picture in grey, coloured by its tokens as far as `amount` says, 0…1."""
    scale = SIDE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    grey = to_tensor(picture.convert("L").resize(size)).unsqueeze(-1)
    # Squares, one a token.
    squares = to_image(torch.cat([colours, amount.unsqueeze(-1)], dim=-1)).resize(size, Image.Resampling.NEAREST)
    colours, amount = to_tensor(squares).split((3, 1), dim=-1)
    return to_image(torch.lerp(0.3 * grey, colours * (0.5 + 0.5 * grey), amount))
