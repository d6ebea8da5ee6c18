"""The structure of a U-Net, and weights for its adapters, without ComfyUI."""

from __future__ import annotations

import torch
from dreamcache.dreamcache_core.unet import TransformerLayer, UNetStructure
from harness.generated_weights import generated_tensor

_ENCODER = {1: 32, 2: 32, 4: 64, 5: 64, 7: 128, 8: 128}
_DECODER = {3: 128, 4: 128, 5: 128, 6: 64, 7: 64, 8: 64, 9: 32, 10: 32, 11: 32}

SD15 = UNetStructure(
    model_channels=32,
    context_dim=48,
    layers=(
        *(TransformerLayer(f"input_blocks.{block}.1", width, heads=8) for block, width in _ENCODER.items()),
        TransformerLayer("middle_block.1", 128, heads=8),
        *(TransformerLayer(f"output_blocks.{block}.1", width, heads=8) for block, width in _DECODER.items()),
    ),
)
"""The miniature of SD1.5: the blocks of the full-size model, a tenth as wide."""


def generated_state(module: torch.nn.Module, seed: int = 11) -> dict[str, torch.Tensor]:
    """A state dict with each tensor generated from its name."""
    return {name: generated_tensor(name, tuple(tensor.shape), seed) for name, tensor in module.state_dict().items()}
