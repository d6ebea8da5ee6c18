"""DINO's vision transformer (arXiv 2104.14294), by which likeness is measured, and which ComfyUI has no class for."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import DreamCacheError
from ..io.tensor_file import read_tensors
from ..reference.image import resize

_HEAD_CHANNELS = 64
# Of ImageNet's pictures, which DINO was trained on.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
# DINO was tested on squares cut out of slightly larger pictures: 224 pixels of 256.
_CROP = 224 / 256

# Our tensors' names, or parts of them, and what they are in the files of the authors and timm, and of Hugging Face.
_NAMES = (
    ("class_token", "cls_token", "embeddings.cls_token"),
    ("positions", "pos_embed", "embeddings.position_embeddings"),
    ("patches.", "patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.layers.", "blocks.", "encoder.layer."),
    (".norm1.", ".norm1.", ".layernorm_before."),
    (".norm2.", ".norm2.", ".layernorm_after."),
    (".self_attn.in_proj_", ".attn.qkv.", ".attention.attention.query."),
    (".self_attn.in_proj_", ".attn.qkv.", ".attention.attention.key."),
    (".self_attn.in_proj_", ".attn.qkv.", ".attention.attention.value."),
    (".self_attn.out_proj.", ".attn.proj.", ".attention.output.dense."),
    (".linear1.", ".mlp.fc1.", ".intermediate.dense."),
    (".linear2.", ".mlp.fc2.", ".output.dense."),
    ("blocks.norm.", "norm.", "layernorm."),
)
_PARTS = ("class_token", "positions", "patches.", "blocks.")


class VisionTransformer(nn.Module):
    """Turns pictures into vectors, one each: its class token after the last block.

    `hidden`: channels within the blocks' perceptrons. `patch`, `side`: of patches and of pictures, in pixels.
    """

    def __init__(self, width: int, depth: int, hidden: int, patch: int, side: int) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        block = nn.TransformerEncoderLayer(
            *(width, width // _HEAD_CHANNELS, hidden),
            dropout=0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width, eps=1e-6), enable_nested_tensor=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, 3, side, side), as `preprocess` gives them → (batch, width)."""
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.blocks(tokens + self.positions)[:, 0]

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, height, width, 3), 0…1 → the squares at their centres, (batch, 3, side, side)."""
        scale = self.side / _CROP / min(image.shape[1:3])
        height, width = (round(length * scale) for length in image.shape[1:3])
        top, left = (height - self.side) // 2, (width - self.side) // 2
        square = resize(image, height, width)[:, top : top + self.side, left : left + self.side]
        return ((square - image.new_tensor(_MEAN)) / image.new_tensor(_DEVIATION)).movedim(-1, 1)


def load_vision_transformer(path: Path) -> VisionTransformer | None:
    """The DINO network of a file, as its authors, timm or Hugging Face publish it; None if it holds another network.

    Raises DreamCacheError if the file is damaged.
    """
    tensors = _our_names(_read(path))
    if not {"patches.weight", "positions", "blocks.layers.0.linear1.bias"} <= tensors.keys():
        return None
    width, _, patch, _ = tensors["patches.weight"].shape
    side = math.isqrt(tensors["positions"].shape[1]) * patch
    depth = sum(name.endswith(".linear1.bias") for name in tensors)
    with torch.device("meta"):
        network = VisionTransformer(width, depth, len(tensors["blocks.layers.0.linear1.bias"]), patch, side)
    # Later networks are built of the same parts, and others.
    if _shapes(network.state_dict()) != _shapes(tensors):
        return None
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.requires_grad_(False).eval()


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if path.suffix in (".safetensors", ".sft"):
        return read_tensors(path)[1]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DreamCacheError(f"{path.name} cannot be read: it is damaged or contains more than tensors.") from error


def _our_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under our names, without those that are no part of the network, such as heads and poolers."""
    column = 1 if "pos_embed" in tensors else 2
    renamed: dict[str, list[torch.Tensor]] = {}
    # Queries, keys and values, where they lie apart, are put together in this order.
    for name in sorted(tensors, key=lambda name: (".query." not in name, ".key." not in name)):
        ours = name
        for names in _NAMES:
            ours = ours.replace(names[column], names[0])
        if ours.startswith(_PARTS):
            renamed.setdefault(ours, []).append(tensors[name])
    return {name: torch.cat(parts) for name, parts in renamed.items()}


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
