"""The demo model's networks: ComfyUI's own classes of SD1.5's structure, with few channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
import torch.nn.functional as F
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

FILE_KIND = "demo model"
FILE_VERSION = 1

TOKENS = 16
"""Of a prompt; longer ones are cut into parts of so many, as ComfyUI cuts those of SD1.5 into parts of 77."""

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 96,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_checkpoint": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "adm_in_channels": None,
    "legacy": False,
}
_TEXT = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": TOKENS,
}
_PIXELS = 4
_AUTOENCODER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 128 // _PIXELS,
        "in_channels": 3 * _PIXELS**2,
        "out_ch": 3 * _PIXELS**2,
        "ch": 64,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


class DemoAutoencoder(AutoencoderKL):
    """SD1.5's, but on blocks of 4 × 4 pixels in place of its finer half, which is what takes time."""

    def __init__(self) -> None:
        super().__init__(**_AUTOENCODER)

    def encode(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().encode(F.pixel_unshuffle(x, _PIXELS), *args, **kwargs)

    def decode(self, z: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return F.pixel_shuffle(super().decode(z, **kwargs), _PIXELS)


class _Config(comfy.supported_models.SD15):
    """SD1.5, but predicting v: colours, which a reference is about, are learned sooner at high noise.

    Its heads have 32 channels each: with SD1.5's 8 heads they would have 8, too few to find a place in a reference.
    """

    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 32}

    def model_type(self, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


def demo_config() -> comfy.supported_models.SD15:
    """ComfyUI's description of the U-Net."""
    return _Config(dict(_UNET))


@dataclass(frozen=True, eq=False)
class DemoNetworks:
    """What Load Checkpoint gives."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE

    @property
    def patchers(self) -> dict[str, ModelPatcher]:
        """What ComfyUI loads each part by."""
        return {"model": self.model, "clip": self.clip.patcher, "vae": self.vae.patcher}


def demo_networks(tensors: Mapping[str, torch.Tensor], disable_dynamic: bool = False) -> DemoNetworks:
    """The networks with these weights, named `unet.…`, `text_encoder.…` and `autoencoder.…`; parts that have none are
    left undefined, for the recipe to train. `disable_dynamic`: as ComfyUI's loaders have it.
    """
    weights = {
        part: {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
        for part in ("unet", "text_encoder", "autoencoder")
    }
    # The class that ComfyUI uses for its own models; before dynamic VRAM came there was only one.
    kind = ModelPatcher if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return DemoNetworks(
        _model(weights["unet"], kind),
        _clip(weights["text_encoder"], disable_dynamic),
        _vae(weights["autoencoder"], kind),
    )


def _model(weights: dict[str, torch.Tensor], kind: type[ModelPatcher]) -> ModelPatcher:
    config = demo_config()
    device, offload_device = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(device, supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model({}, device=offload_device)
    patcher = kind(model, load_device=device, offload_device=offload_device)
    if weights:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        dynamic = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
        model.diffusion_model.load_state_dict(weights, assign=dynamic)
    return patcher


def _clip(weights: dict[str, torch.Tensor], disable_dynamic: bool) -> CLIP:
    clip = CLIP(
        comfy.supported_models.SD15({}).clip_target(),
        tokenizer_data={"clip_l_max_length": TOKENS},
        model_options={"clip_l_model_config": _TEXT},
        **({"disable_dynamic": True} if disable_dynamic else {}),
    )
    if weights:
        clip.load_sd(weights, full_model=True)
    return clip


def _vae(weights: dict[str, torch.Tensor], kind: type[ModelPatcher]) -> VAE:
    vae = VAE(sd=weights, config={"params": _AUTOENCODER})
    network = DemoAutoencoder()
    if weights:
        network.load_state_dict(weights)
    vae.first_stage_model = network.eval().to(vae.vae_dtype)
    offload_device = comfy.model_management.vae_offload_device()
    vae.patcher = kind(vae.first_stage_model, load_device=vae.device, offload_device=offload_device)
    return vae
