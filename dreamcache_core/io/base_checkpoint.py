"""Base model checkpoints: the base model family, from the file's header."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DreamCacheError
from ..unet import family
from .tensor_file import read_shapes

_NETWORK = "model.diffusion_model."
_FIRST_WEIGHT = f"{_NETWORK}input_blocks.0.0.weight"
_CONTEXT_WEIGHT = re.compile(re.escape(_NETWORK) + r"input_blocks\..*\.attn2\.to_k\.weight")


def checkpoint_family(path: Path) -> str | None:
    """The base model family of a checkpoint, such as `SD1.x`, or a description of another network.

    None unless the file is a `.safetensors` checkpoint in the LDM layout. No weight is read.
    """
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        _, shapes = read_shapes(path)
    except DreamCacheError:
        return None
    first = shapes.get(_FIRST_WEIGHT)
    context_weight = next(filter(_CONTEXT_WEIGHT.fullmatch, shapes), None)
    if not first or not context_weight:
        return "no U-Net such as SD1.x's" if any(name.startswith(_NETWORK) for name in shapes) else None
    return family(model_channels=first[0], context_dim=shapes[context_weight][-1])
