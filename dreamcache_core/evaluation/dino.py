"""The network of the DINO metric: DINO's vision transformer (arXiv 2104.14294), which ComfyUI doesn't implement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..io.pickle_file import open_pickle
from ..io.tensor_file import open_tensors
from ..reference.image import resize

_HEAD_CHANNELS = 64
# Mean and standard deviation of ImageNet's RGB channels, 0…1.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
# The side of the central crop, relative to the image's shorter side: DINO's evaluation crops 224 of 256 pixels.
_CROP = 224 / 256

# Names of tensors, or parts of them: in this module, in files of the authors and timm, in files of Hugging Face.
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
    """Embeds images: an image's embedding is the class token after the last block.

    `width`: channels of a token. `depth`: number of blocks. `hidden`: channels of the hidden layer of a block's MLP.
    `patch`, `side`: sides of a patch and of an image, in pixels.
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
        """Preprocessed images (batch, 3, side, side) → embeddings (batch, width)."""
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.blocks(tokens + self.positions)[:, 0]

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """Images (batch, height, width, 3), 0…1 → normalized central crops (batch, 3, side, side)."""
        scale = self.side / _CROP / min(image.shape[1:3])
        height, width = (round(length * scale) for length in image.shape[1:3])
        top, left = (height - self.side) // 2, (width - self.side) // 2
        square = resize(image, height, width)[:, top : top + self.side, left : left + self.side]
        return ((square - image.new_tensor(_MEAN)) / image.new_tensor(_DEVIATION)).movedim(-1, 1)


def load_vision_transformer(path: Path) -> VisionTransformer | None:
    """Load a DINO from a file of its authors, timm or Hugging Face; None if the file holds another network.

    Float32, on the CPU, without gradients. Raises DreamCacheError if the file is damaged.
    """
    tensors = _own_names(_read(path))
    network = _network_of(_shapes(tensors))
    if network is None or not all(tensor.is_floating_point() for tensor in tensors.values()):
        return None
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.requires_grad_(False).eval()


def _network_of(shapes: Mapping[str, torch.Size]) -> VisionTransformer | None:
    """The network whose weights have these shapes, without values; None if there is none."""
    match [shapes.get(name) for name in ("patches.weight", "positions", "blocks.layers.0.linear1.bias")]:
        case [[width, 3, patch, across], [1, tokens, of_token], [hidden]]:
            is_possible = patch == across > 0 and width == of_token > 0 and width % _HEAD_CHANNELS == 0
        case _:
            is_possible = False
    if not is_possible:
        return None
    depth = sum(name.endswith(".linear1.bias") for name in shapes)
    with torch.device("meta"):
        network = VisionTransformer(width, depth, hidden, patch, math.isqrt(tokens) * patch)
    # Later vision transformers have the same tensors, and more.
    return network if _shapes(network.state_dict()) == shapes else None


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    with open_tensors(path) if path.suffix.lower() in (".safetensors", ".sft") else open_pickle(path) as file:
        return file.read()


def _own_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by the names that this module uses, without those of heads and poolers."""
    column = 1 if "pos_embed" in tensors else 2
    renamed: dict[str, list[torch.Tensor]] = {}
    # Hugging Face stores query, key and value apart; in_proj concatenates them in this order.
    for name in sorted(tensors, key=lambda name: (".query." not in name, ".key." not in name)):
        own = name
        for names in _NAMES:
            own = own.replace(names[column], names[0])
        if own.startswith(_PARTS):
            renamed.setdefault(own, []).append(tensors[name])
    # Parts of a damaged file may not fit together. The first one alone has a shape that no network has.
    return {name: torch.cat(parts) if _fit(parts) else parts[0] for name, parts in renamed.items()}


def _fit(parts: Sequence[torch.Tensor]) -> bool:
    return parts[0].ndim > 0 and len({(part.shape, part.dtype) for part in parts}) == 1


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
