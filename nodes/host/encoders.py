"""The networks that evaluation measures with, of whatever files ComfyUI has: CLIP, DINO, and what finds masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel

from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.evaluation.dino import VisionTransformer, load_vision_transformer
from ...dreamcache_core.evaluation.metrics import ImageEncoder
from ...dreamcache_core.evaluation.results import MaskFinder
from ...dreamcache_core.io.tensor_file import name_and_hash

_HEAD_CHANNELS = 64
_KINDS = {"clip_vision_model": "CLIP", "dinov2": "DINOv2"}
_ADVICE = "use a file with a complete CLIP, such as OpenAI's clip-vit-large-patch14, for both"


class VisionEncoder:
    """An encoder of pictures that ComfyUI has a class for. `file`: what it was loaded from, where that is known.

    Raises DreamCacheError if it is no CLIP, and no DINOv2 either.
    """

    def __init__(self, clip_vision: ClipVisionModel, file: Path | None = None) -> None:
        self.kind = _KINDS.get(clip_vision.model_type)
        if not self.kind:
            raise DreamCacheError(f"A {clip_vision.model_type} has no image embedding to compare: use a CLIP.")
        config = clip_vision.config
        self.channels: int = config.get("projection_dim", config["hidden_size"])
        self.description = _describe(f"{self.kind} ViT/{config['patch_size']}", config["num_hidden_layers"], file)
        self._clip_vision = clip_vision

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self._clip_vision.encode_image(image.unsqueeze(0))["image_embeds"][0].float().cpu()


class DinoEncoder:
    """DINO's encoder, for which ComfyUI has no class, on the device where it computes."""

    def __init__(self, network: VisionTransformer, file: Path) -> None:
        self._network = network.to(comfy.model_management.get_torch_device())
        self.description = _describe(f"DINO ViT/{network.patch}", len(network.blocks.layers), file)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        pixels = self._network.preprocess(image.unsqueeze(0).to(self._network.positions))
        return self._network(pixels)[0].cpu()


class TextEncoder:
    """The other half of the CLIP that `images` is a half of.

    Raises DreamCacheError if `clip` doesn't hold it, or not with the projection into the space of pictures' vectors.
    """

    def __init__(self, clip: comfy.sd.CLIP, images: VisionEncoder, file: Path | None = None) -> None:
        encoders = {
            name: module
            for name, module in clip.cond_stage_model.named_children()
            if isinstance(getattr(module, "transformer", None), comfy.clip_model.CLIPTextModel)
        }
        widths = {name: encoder.transformer.text_projection.out_features for name, encoder in encoders.items()}
        self._name = next((name for name, width in widths.items() if width == images.channels), "")
        if not self._name:
            found = " and ".join(map(str, widths.values())) or "none of CLIP's"
            raise DreamCacheError(
                f"The text encoder belongs to another CLIP than the image encoder (its vectors are {found} wide, the "
                f"images' {images.channels}): {_ADVICE}."
            )
        self._clip, self._encoder = clip, encoders[self._name]
        if not _has_projection(clip, self._encoder.transformer.text_projection):
            raise DreamCacheError(
                "The text encoder has no text projection, as in SD1.x checkpoints, so it cannot compare prompts with "
                f"images: {_ADVICE}."
            )
        self.description = _describe(f"CLIP text encoder, {images.channels} wide", self._encoder.num_layers, file)

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        tokens = self._clip.tokenize(prompt, disable_weights=True)
        self._clip.load_model(tokens)
        self._encoder.reset_clip_options()
        self._encoder.set_clip_options({"projected_pooled": True, "execution_device": self._clip.patcher.load_device})
        try:
            projected = self._encoder.encode_token_weights(tokens[self._name.removeprefix("clip_")])[1]
        finally:
            self._encoder.reset_clip_options()
        return projected[0].float().cpu()


def load_dino(path: Path) -> ImageEncoder:
    """The DINO of a file: one of the first, such as ViT-S/16, or a DINOv2 that ComfyUI loads."""
    network = load_vision_transformer(path)
    if network:
        return DinoEncoder(network, path)
    clip_vision = comfy.clip_vision.load(str(path))
    if clip_vision is None or clip_vision.model_type != "dinov2":
        raise DreamCacheError(f"{path.name} contains no known DINO: use DINO's ViT-S/16.")
    return VisionEncoder(clip_vision, path)


def load_clip_images(path: Path) -> VisionEncoder:
    """CLIP's encoder of pictures: those that ComfyUI knows, and OpenAI's smaller ones, such as ViT-B/32."""
    return clip_images(comfy.clip_vision.load(str(path)) or _smaller_clip_vision(path), path)


def clip_images(clip_vision: ClipVisionModel, file: Path | None = None) -> VisionEncoder:
    """CLIP's encoder of pictures. Raises DreamCacheError if `clip_vision` is another network."""
    encoder = VisionEncoder(clip_vision, file)
    if encoder.kind != "CLIP":
        raise DreamCacheError(f"A {encoder.kind} is not a CLIP, which CLIP-I and CLIP-T need: use a CLIP.")
    return encoder


def load_clip_prompts(path: Path, images: VisionEncoder) -> TextEncoder | None:
    """CLIP's encoder of prompts, or None if the file holds none."""
    tensors = comfy.utils.load_torch_file(str(path))
    embedding = tensors.get("text_model.embeddings.token_embedding.weight")
    if embedding is None:
        return None
    # Else ComfyUI takes all smaller ones to be of ViT-L/14's size.
    size = _size(tensors, "text_model", embedding.shape[1])
    clip = comfy.sd.load_clip([str(path)], model_options={"model_config": size})
    return TextEncoder(clip, images, path)


def load_mask_finder(path: Path) -> MaskFinder:
    """What finds masks with one of the networks by which ComfyUI removes backgrounds."""
    try:
        import comfy.bg_removal_model
    except ModuleNotFoundError as error:
        raise DreamCacheError("This ComfyUI is too old to remove backgrounds: update it.") from error
    model = comfy.bg_removal_model.load(str(path))
    if model is None:
        raise DreamCacheError(f"{path.name} contains no background-removal network: use a BiRefNet.")
    return lambda image: model.encode_image(image.unsqueeze(0))[0].float().cpu()


def _smaller_clip_vision(path: Path) -> ClipVisionModel:
    tensors = comfy.utils.load_torch_file(str(path))
    patches = tensors.get("vision_model.embeddings.patch_embedding.weight")
    projection = tensors.get("visual_projection.weight")
    if patches is None or projection is None:
        raise DreamCacheError(f"{path.name} contains no known CLIP image encoder: use a complete CLIP.")
    width, _, patch, _ = patches.shape
    positions = tensors["vision_model.embeddings.position_embedding.weight"]
    clip_vision = ClipVisionModel(
        {
            **_size(tensors, "vision_model", width),
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "num_channels": 3,
            "patch_size": patch,
            "image_size": math.isqrt(len(positions)) * patch,
            "projection_dim": len(projection),
        }
    )
    clip_vision.load_sd(tensors)
    return clip_vision


def _size(tensors: dict[str, torch.Tensor], half: str, width: int) -> dict[str, int]:
    """How large a half of a CLIP is, as configurations tell it."""
    return {
        "hidden_size": width,
        "num_attention_heads": width // _HEAD_CHANNELS,
        "num_hidden_layers": sum(
            name.startswith(f"{half}.") and name.endswith(".layer_norm1.weight") for name in tensors
        ),
        "intermediate_size": len(tensors[f"{half}.encoder.layers.0.mlp.fc1.weight"]),
    }


def _has_projection(clip: comfy.sd.CLIP, projection: torch.nn.Linear) -> bool:
    """Whether CLIP's text projection was in the file that it was loaded from.

    Where it wasn't, ComfyUI leaves the weight as the memory happened to be, so that the weight itself can't tell. Of a
    CLIP that is of no file, it is believed.
    """
    if projection.weight is None:
        return False
    source = clip.patcher.cached_patcher_init
    if not source:
        return True
    paths: Any = source[1][0]
    return any(
        name.endswith(("text_projection", "text_projection.weight")) and tensor.shape == projection.weight.shape
        for path in ([paths] if isinstance(paths, str) else paths)
        for name, tensor in comfy.utils.load_torch_file(str(path)).items()
    )


def _describe(what: str, layers: int, file: Path | None) -> str:
    return f"{what}, {layers} layers" + (f", {name_and_hash(file)}" if file else "")
