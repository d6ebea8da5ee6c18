"""Weights generated from tensor names, and full-size Stable Diffusion files that hold them.

No published weights are needed to prove shapes, memory, speed and numbers: one rule gives everyone the same network.
What such a network draws is noise.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from dreamcache.dreamcache_core.unet import UNetStructure

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
SHORT = "SD15 cut short"
FAMILIES: dict[str, dict[str, Any]] = {
    "SD15": _UNET | {"context_dim": 768, "use_linear_in_transformer": False},
    "SD20": _UNET | {"context_dim": 1024, "use_linear_in_transformer": True},
    "SDXL": _UNET
    | {
        "context_dim": 2048,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
    # As wide as SD1.5 and less deep: a checkpoint that is SD1.x to whoever loads it, and does so in a moment.
    SHORT: _UNET
    | {
        "context_dim": 768,
        "use_linear_in_transformer": False,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
    },
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


def write_models(folder: Path, family: str, seed: int) -> str:
    """Put a checkpoint and an adapter for it into a `models` folder, unless they are there.

    `family`: one of FAMILIES, which begin with ComfyUI's names. Returns the name that both files have.
    """
    name = f"generated_{family.lower().replace(' ', '_')}.safetensors"
    for path, write in (
        (folder / "checkpoints" / name, write_checkpoint),
        (folder / "dreamcache" / name, write_adapter),
    ):
        if not path.is_file():
            print(f"Writing {path} …", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, family, seed)
    return name


def write_checkpoint(path: Path, family: str, seed: int) -> None:
    """Write a checkpoint in float16 and the original LDM layout: 2 GB, 7 GB of SDXL, and 0.4 GB of SHORT.

    ComfyUI must be importable: its own classes give the names and shapes, on the meta device.
    """
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.taesd.taesd import TAESD

    config = config_of(family)
    with torch.device("meta"):
        unet = config.get_model({}, device="meta").diffusion_model
        autoencoder = TAESD() if family == SHORT else AutoencoderKL(ddconfig=_AUTOENCODER, embed_dim=4)
        text = config.clip_target().clip(device="meta", dtype=torch.float32)
    state = config.process_unet_state_dict_for_saving(_generate(unet, seed))
    if family == "SD20":
        # ComfyUI takes SD2.x for a model that predicts v where this bias varies by more than 0.09; base doesn't.
        state["model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"] *= 0.5
    state |= config.process_vae_state_dict_for_saving(_generate(autoencoder, seed))
    state |= config.process_clip_state_dict_for_saving(_generate(text, seed))
    temporary = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    temporary.replace(path)


def write_adapter(path: Path, family: str, seed: int) -> None:
    """Write an adapter for that checkpoint, in float16: 50 MB, and 11 MB of SHORT."""
    from dreamcache.dreamcache_core.adapter.file import save_adapter
    from dreamcache.dreamcache_core.adapter.network import Adapter
    from dreamcache.dreamcache_core.unet import select_layers

    structure = full_size_structure(family)
    adapter = Adapter(select_layers(structure.layers), structure.base_model)
    adapter.load_state_dict(_generate(adapter, seed))
    save_adapter(path, adapter.half())


def write_clip_vision(path: Path, seed: int) -> None:
    """Write a CLIP ViT-H in float16, 1.3 GB, the image encoder of an IP-Adapter for SD1.5."""
    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops

    config = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_h.json").read_text())
    encoder = comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "meta", comfy.ops.disable_weight_init)
    save_file(_generate(encoder, seed), path)


def full_size_structure(family: str) -> UNetStructure:
    """The structure of a full-size U-Net, read without making its weights."""
    from dreamcache.dreamcache_core.unet import read_structure

    return read_structure(config_of(family).get_model({}, device="meta").diffusion_model, family)


def config_of(family: str) -> Any:
    """ComfyUI's description of a family."""
    import comfy.supported_models

    config = getattr(comfy.supported_models, family.split()[0])(FAMILIES[family])
    config.set_inference_dtype(torch.float32, None)
    return config


def _generate(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return {name: generated_tensor(name, shape, seed).half() for name, shape in shapes.items() if shape}
