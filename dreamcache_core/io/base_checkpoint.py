"""Base model checkpoints: the base model family, from the file's header."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DreamCacheError
from ..unet import family
from .tensor_file import open_tensors

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
        with open_tensors(path) as file:
            tensors = file.tensors
    except DreamCacheError:
        return None
    first = tensors[_FIRST_WEIGHT].shape if _FIRST_WEIGHT in tensors else ()
    context = next((tensors[name].shape for name in tensors if _CONTEXT_WEIGHT.fullmatch(name)), ())
    if not first or not context:
        return "no U-Net such as SD1.x's" if any(name.startswith(_NETWORK) for name in tensors) else None
    return family(model_channels=first[0], context_dim=context[-1])
