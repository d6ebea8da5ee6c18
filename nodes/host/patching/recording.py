"""Recording: the inputs of a U-Net's transformers are kept during one evaluation (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ....dreamcache_core.unet import TransformerLayer

# Layer name → (batch, channels, height, width).
Features = dict[str, torch.Tensor]


class _Recorded(Exception):  # noqa: N818  It is no error.
    """Ends an evaluation after the last recorded layer, since the rest of it isn't needed."""


@contextmanager
def recording(unet: torch.nn.Module, layers: Sequence[TransformerLayer]) -> Iterator[Features]:
    """Records what enters the transformers of `layers`. The evaluation inside ends when the last is recorded.

    Hooks on the modules do it, which work whatever other nodes have put in place of their forward.
    """
    features: Features = {}
    hooks = [
        unet.get_submodule(layer.name).register_forward_pre_hook(partial(_record, features, layer.name, len(layers)))
        for layer in layers
    ]
    try:
        yield features
    except _Recorded:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _record(features: Features, layer: str, layers: int, _: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    features[layer] = inputs[0].clone()
    if len(features) == layers:
        raise _Recorded
