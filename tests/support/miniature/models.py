"""Real ComfyUI models with tiny networks and generated weights, so that tests of composition take seconds.

ComfyUI must be importable, and its device chosen, before this module is imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import torch
from torch import Tensor, nn

SEED = 11


def _load_weights_rule() -> Callable[[str, tuple[int, ...], int], Tensor]:
    # By path: inside a ComfyUI server this package is a custom node, and the repository is no package there.
    path = Path(__file__).resolve().parents[3] / "scripts" / "harness" / "generated_weights.py"
    spec = importlib.util.spec_from_file_location("dreamcache_generated_weights", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generated_tensor


generated_tensor = _load_weights_rule()


class _SD21V(comfy.supported_models.SD20):
    """SD2.1 at 768 pixels. ComfyUI tells it from the other by its trained weights, which there are none of here."""

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


class _SD15V(comfy.supported_models.SD15):
    """SD1.5 that predicts v."""

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


class Structure(NamedTuple):
    config: type[comfy.supported_models_base.BASE]
    unet: dict[str, Any]
    """What ComfyUI's `model_detection` reads from a checkpoint; the config class adds the attention heads."""
    text_width: int
    """Of each text encoder; SDXL has two, side by side."""


_UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
_SD = _UNET | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
_SD15 = _SD | {"model_channels": 32, "context_dim": 48, "use_linear_in_transformer": False}
_SD21 = _SD | {"model_channels": 64, "context_dim": 64, "use_linear_in_transformer": True}
_SDXL = _UNET | {
    "model_channels": 32,
    "context_dim": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 32 + 6 * 256,  # the second text encoder's width, and six embedded sizes
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
}
_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 48,
    "context_in_dim": 48,
    "hidden_size": 32,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}

STRUCTURES = {
    "sd15": Structure(comfy.supported_models.SD15, _SD15, text_width=48),
    "sd15_v": Structure(_SD15V, _SD15, text_width=48),
    "sd21": Structure(comfy.supported_models.SD20, _SD21, text_width=64),
    "sd21_v": Structure(_SD21V, _SD21, text_width=64),
    "sd15_inpaint": Structure(comfy.supported_models.SD15, _SD15 | {"in_channels": 9}, text_width=48),
    "sdxl": Structure(comfy.supported_models.SDXL, _SDXL, text_width=32),
    "ssd1b": Structure(comfy.supported_models.SSD1B, _SDXL | {"transformer_depth_middle": -1}, text_width=32),
    "flux": Structure(comfy.supported_models.Flux, _FLUX, text_width=48),
}


def unet_patcher(
    structure: str, seed: int = SEED, dtype: torch.dtype = torch.float32
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL."""
    model = model_config(structure, dtype).get_model({}, device=_offload_device())
    patcher = _patcher(model)
    weights = generated_weights(model.diffusion_model, seed)
    model.diffusion_model.load_state_dict(weights, assign=patcher.is_dynamic())
    return patcher


def clip(structure: str, seed: int = SEED) -> comfy.sd.CLIP:
    """The structure's own kind of CLIP, as wide as its cross attention."""
    width = STRUCTURES[structure].text_width
    # Flux's other text encoder is a T5, larger than all the rest; SD1.x's CLIP makes prompts of the same form.
    kind = comfy.supported_models.SD15 if structure == "flux" else STRUCTURES[structure].config
    text = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,  # SD2.x and SDXL use the last layer but one, and ComfyUI wants another before it
    }
    options = {f"{name}_model_config": text for name in ("clip_l", "clip_h", "clip_g")}
    encoder = comfy.sd.CLIP(kind({}).clip_target(), model_options=options | {"dtype": torch.float32})
    encoder.load_sd(generated_weights(encoder.cond_stage_model, seed), full_model=True)
    return encoder


def clip_vision(structure: str, seed: int = SEED) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP_VISION whose vectors are as wide as those of the structure's text encoder."""
    width = STRUCTURES[structure].text_width
    encoder = comfy.clip_vision.ClipVisionModel(
        {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "hidden_act": "quick_gelu",
            "num_channels": 3,
            "image_size": 64,
            "patch_size": 16,
            "projection_dim": width,
        }
    )
    encoder.load_sd(generated_weights(encoder.model, seed))
    return encoder


def vae(seed: int = SEED) -> comfy.sd.VAE:
    """4 latent channels at 1/8 of the size: TAESD, the tiny one that ComfyUI reads too."""
    weights = generated_weights(comfy.taesd.taesd.TAESD(), seed)
    # Latents as wide as Stable Diffusion's, and images around grey: what the samplers make of generated weights is
    # mostly noise, which would saturate them.
    weights["taesd_encoder.14.weight"] *= 3
    weights["taesd_decoder.19.weight"] *= 0.2
    weights["taesd_decoder.19.bias"][:] = 0.5
    weights["vae_scale"] = torch.tensor(0.18215)
    weights["vae_shift"] = torch.tensor(0.0)
    return comfy.sd.VAE(sd=weights, dtype=torch.float32)


def controlnet(structure: str, seed: int = SEED, effect: float = 0.1) -> comfy.controlnet.ControlNet:
    """A ControlNet for RGB images. `effect` scales the layers through which it acts, zero in an untrained one."""
    config = model_config(structure, in_channels=4).unet_config
    config.pop("out_channels")
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, device=_offload_device(), operations=comfy.ops.disable_weight_init
    )
    control = comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())
    weights = generated_weights(network, seed)
    for name in weights:
        if name.startswith(("zero_convs.", "middle_block_out.")):
            weights[name] *= effect
    network.load_state_dict(weights, assign=control.control_model_wrapped.is_dynamic())
    return control


def lora(structure: str, rank: int = 4, seed: int = SEED) -> dict[str, Tensor]:
    """A LoRA for a structure; see `lora_for`."""
    config = model_config(structure)
    return lora_for(config.unet_config, config.get_model({}, device="meta").diffusion_model, rank, seed)


def lora_for(unet_config: dict[str, Any], unet: nn.Module, rank: int = 4, seed: int = SEED) -> dict[str, Tensor]:
    """A LoRA as kohya's scripts name it, on every self-attention's queries and cross-attention's values.

    For a layer (out, in): lora_down (rank, in), lora_up (out, rank), alpha ().
    """
    shapes = _shapes(unet)
    tensors = {}
    for diffusers_name, name in comfy.utils.unet_to_diffusers(unet_config).items():
        if not name.endswith(("attn1.to_q.weight", "attn2.to_v.weight")):
            continue
        key = "lora_unet_" + diffusers_name.removesuffix(".weight").replace(".", "_")
        outs, ins = shapes[name]
        tensors[f"{key}.lora_down.weight"] = generated_tensor(f"{key}.lora_down.weight", (rank, ins), seed)
        tensors[f"{key}.lora_up.weight"] = generated_tensor(f"{key}.lora_up.weight", (outs, rank), seed)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    return tensors


def authors_name(name: str) -> str:
    """A tensor of our adapter, as the authors name it; their names are what its weights are generated from."""
    layer, _, parameter = name.rpartition(".")
    layer, _, module = layer.rpartition(".")
    theirs = {"norm_mem": "norm2_mem", "to_out": "attn_mem.to_out.0", "linear_cat": "linear_cat"}
    return f"{layer}.transformer_blocks.0.{theirs.get(module, f'attn_mem.{module}')}.{parameter}"


def generated_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict of the module, each tensor generated from its name; scalars are settings and left out."""
    return {name: generated_tensor(name, shape, seed) for name, shape in _shapes(module).items() if shape}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, layer in module.named_modules():
        # With dynamic VRAM, ComfyUI's linear layers have no tensors before they are loaded.
        if isinstance(layer, nn.Linear) and layer.weight is None:
            shapes[f"{name}.weight"] = (layer.out_features, layer.in_features)
            if layer.comfy_need_lazy_init_bias:
                shapes[f"{name}.bias"] = (layer.out_features,)
    return shapes


def model_config(
    structure: str, dtype: torch.dtype = torch.float32, **unet_overrides: Any
) -> comfy.supported_models_base.BASE:
    """ComfyUI's description of the model. `unet_overrides` replace entries of the structure's U-Net configuration."""
    described = STRUCTURES[structure]
    config = described.config(described.unet | unet_overrides)
    config.set_inference_dtype(dtype, None)
    return config


def _patcher(model: nn.Module) -> comfy.model_patcher.ModelPatcher:
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=_offload_device())


def _offload_device() -> torch.device:
    return comfy.model_management.unet_offload_device()
