"""The networks of the demo model: ComfyUI's classes in the structure of SD1.5, with few channels."""

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

# The tokens in a chunk of a prompt, which ComfyUI splits longer prompts into. SD1.5 has 77.
_PROMPT_TOKENS = 16

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
    "max_position_embeddings": _PROMPT_TOKENS,
}
# Side of the blocks of pixels that the autoencoder's channels hold.
_BLOCK = 4
_AUTOENCODER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 128 // _BLOCK,
        "in_channels": 3 * _BLOCK**2,
        "out_ch": 3 * _BLOCK**2,
        "ch": 64,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


class DemoAutoencoder(AutoencoderKL):
    """SD1.5's autoencoder, with pixel shuffling of 4 × 4 blocks in place of its two finest resolutions.

    These take most of the time. The latent has the usual factor of 8.
    """

    def __init__(self) -> None:
        super().__init__(**_AUTOENCODER)

    def encode(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().encode(F.pixel_unshuffle(x, _BLOCK), *args, **kwargs)

    def decode(self, z: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return F.pixel_shuffle(super().decode(z, **kwargs), _BLOCK)


class _Config(comfy.supported_models.SD15):
    """SD1.5 with v-prediction, with which a small model learns colours sooner at high noise, and with heads nearly as
    wide as SD1.5's narrowest: with few channels each, they attend to everything alike.
    """

    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 32}

    def model_type(self, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


def demo_config() -> comfy.supported_models.SD15:
    """ComfyUI's configuration of the U-Net."""
    return _Config(dict(_UNET))


@dataclass(frozen=True, eq=False)
class DemoNetworks:
    """The outputs of Load Checkpoint."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE

    @property
    def patchers(self) -> dict[str, ModelPatcher]:
        """Part → the ModelPatcher by which ComfyUI loads it."""
        return {"model": self.model, "clip": self.clip.patcher, "vae": self.vae.patcher}


def demo_networks(tensors: Mapping[str, torch.Tensor], disable_dynamic: bool = False) -> DemoNetworks:
    """Make the networks with these weights.

    `tensors`: names begin with `unet.`, `text_encoder.` or `autoencoder.`. A part without any stays uninitialized, for
    the recipe to train. `disable_dynamic`: make patchers without dynamic VRAM.
    """
    weights = {
        part: {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
        for part in ("unet", "text_encoder", "autoencoder")
    }
    # The class of ComfyUI's own models; older versions, without dynamic VRAM, have only one.
    patcher_class = ModelPatcher if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return DemoNetworks(
        _model(weights["unet"], patcher_class),
        _clip(weights["text_encoder"], disable_dynamic),
        _vae(weights["autoencoder"], patcher_class),
    )


def _model(weights: dict[str, torch.Tensor], patcher_class: type[ModelPatcher]) -> ModelPatcher:
    config = demo_config()
    device, offload_device = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(device, supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model({}, device=offload_device)
    patcher = patcher_class(model, load_device=device, offload_device=offload_device)
    if weights:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        dynamic = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
        model.diffusion_model.load_state_dict(weights, assign=dynamic)
    return patcher


def _clip(weights: dict[str, torch.Tensor], disable_dynamic: bool) -> CLIP:
    clip = CLIP(
        comfy.supported_models.SD15({}).clip_target(),
        tokenizer_data={"clip_l_max_length": _PROMPT_TOKENS},
        model_options={"clip_l_model_config": _TEXT},
        **({"disable_dynamic": True} if disable_dynamic else {}),
    )
    if weights:
        clip.load_sd(weights, full_model=True)
    return clip


def _vae(weights: dict[str, torch.Tensor], patcher_class: type[ModelPatcher]) -> VAE:
    vae = VAE(sd=weights, config={"params": _AUTOENCODER})
    network = DemoAutoencoder()
    if weights:
        network.load_state_dict(weights)
    vae.first_stage_model = network.eval().to(vae.vae_dtype)
    offload_device = comfy.model_management.vae_offload_device()
    vae.patcher = patcher_class(vae.first_stage_model, load_device=vae.device, offload_device=offload_device)
    return vae
