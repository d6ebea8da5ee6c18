"""The layers that a file is for, as its header lists them."""

from __future__ import annotations

from collections.abc import Sequence

from ..unet import TransformerLayer
from .json_fields import Fields, MalformedError

_MOST = 2**31


def read_layers(header: Fields) -> tuple[TransformerLayer, ...]:
    """The layers of a header, each as `TransformerLayer.to_json` gives it. Raises what `check_layers` does."""
    return check_layers(
        [
            TransformerLayer(layer.text("name"), layer.whole("channels", 1, _MOST), layer.whole("heads", 1, _MOST))
            for layer in header.objects("layers")
        ]
    )


def check_layers(layers: Sequence[TransformerLayer]) -> tuple[TransformerLayer, ...]:
    """The same layers. Raises MalformedError if there are none, if one is there twice, or if one can't exist."""
    if not layers or len({layer.name for layer in layers}) != len(layers):
        raise MalformedError("there are no layers, or the same twice")
    for layer in layers:
        if not layer.is_possible:
            raise MalformedError(f"there can be no layer such as {layer}")
    return tuple(layers)
