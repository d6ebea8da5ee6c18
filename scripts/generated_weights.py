"""Weights generated from tensor names, and full-size Stable Diffusion files made of them.

No published weights are needed to prove shapes, memory, speed and numbers: one rule gives everyone the same network.
What such a network draws is noise.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

# What ComfyUI's `model_detection` reads from a checkpoint of each family; its config classes add the heads.
_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SD15": _UNET | {"context_dim": 768, "use_linear_in_transformer": False},
    "SD20": _UNET | {"context_dim": 1024, "use_linear_in_transformer": True},
}
_AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def generated_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A float32 tensor that depends on its name, its shape and the seed only.

    Matrices and kernels have a variance of 1/fan-in, norms' weights lie around 1, everything else around 0: a network
    of these keeps the scale of its activations.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    tensor = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    if len(shape) >= 2:
        return tensor * float(np.prod(shape[1:])) ** -0.5
    return 1 + 0.1 * tensor if name.endswith("weight") else 0.1 * tensor


def write_checkpoint(path: Path, family: str, seed: int) -> None:
    """Write a full-size checkpoint of "SD15" or "SD20" (ComfyUI's names) in float16 and the original LDM layout, 2 GB.

    ComfyUI must be importable: its own classes give the names and shapes, on the meta device.
    """
    import comfy.model_base
    import comfy.ops
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = getattr(comfy.supported_models, family)(FAMILIES[family])
    config.set_inference_dtype(torch.float32, None)
    with torch.device("meta"):
        unet = config.get_model({}, device="meta").diffusion_model
        autoencoder = AutoencoderKL(ddconfig=_AUTOENCODER, embed_dim=4)
        text = config.clip_target().clip(device="meta", dtype=torch.float32)

    def generate(module: torch.nn.Module) -> dict[str, torch.Tensor]:
        tensors = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        return {name: generated_tensor(name, shape, seed).half() for name, shape in tensors.items() if shape}

    state = config.process_unet_state_dict_for_saving(generate(unet))
    state |= config.process_vae_state_dict_for_saving(generate(autoencoder))
    state |= config.process_clip_state_dict_for_saving(generate(text))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    temporary.replace(path)
