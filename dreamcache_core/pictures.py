"""Pictures as Pillow has them, and as tensors (height, width, channels) of 0…1."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(height, width, 3) of an RGB picture, (height, width) of a grey one; float32."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """RGB of (height, width, 3), grey of (height, width). What `to_tensor` gave comes back as it was."""
    # Rounded, not cut off: 255 · (k / 255) may be a little less than k.
    levels = (tensor.detach().float().cpu().clamp(0, 1) * 255).round()
    return Image.fromarray(levels.to(torch.uint8).numpy())
