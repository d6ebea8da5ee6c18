"""The networks of an evaluation, loaded from ComfyUI's models folders: CLIP, DINO and background removal."""

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
from ...dreamcache_core.evaluation.measurement import MaskFinder
from ...dreamcache_core.evaluation.metrics import ImageEncoder
from ...dreamcache_core.io.finite import check_finite
from ...dreamcache_core.io.tensor_file import name_and_hash
from .loading import check_complete, loading

_HEAD_CHANNELS = 64
# ComfyUI also returns what the last layer but one gives.
_FEWEST_LAYERS = 2
# ComfyUI's model_type → name of the network, of those that embed a whole image.
_KINDS = {"clip_vision_model": "CLIP", "dinov2": "DINOv2"}
_ADVICE = "use a file with a complete CLIP, such as OpenAI's clip-vit-large-patch14, for both"


class ClipVisionEncoder:
    """An ImageEncoder around a CLIP_VISION of ComfyUI: a CLIP or a DINOv2.

    `file`: that it was loaded from, for the description. Raises DreamCacheError if it is another network.
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
    """An ImageEncoder around the original DINO, which ComfyUI doesn't implement, on ComfyUI's compute device."""

    def __init__(self, network: VisionTransformer, file: Path) -> None:
        self._network = network.to(comfy.model_management.get_torch_device())
        self.description = _describe(f"DINO ViT/{network.patch}", len(network.blocks.layers), file)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        pixels = self._network.preprocess(image.unsqueeze(0).to(self._network.positions))
        return self._network(pixels)[0].cpu()


class ClipTextEncoder:
    """A TextEncoder around the text encoder in a CLIP of ComfyUI that belongs to the same CLIP as `image_encoder`.

    `file`: that it was loaded from, for the description. Raises DreamCacheError if there is no such text encoder, or if
    it lacks the projection to the image embeddings' space.
    """

    def __init__(self, clip: comfy.sd.CLIP, image_encoder: ClipVisionEncoder, file: Path | None = None) -> None:
        encoders = {
            name: module
            for name, module in clip.cond_stage_model.named_children()
            if isinstance(getattr(module, "transformer", None), comfy.clip_model.CLIPTextModel)
        }
        widths = {name: encoder.transformer.text_projection.out_features for name, encoder in encoders.items()}
        self._name = next((name for name, width in widths.items() if width == image_encoder.channels), "")
        if not self._name:
            found = " and ".join(map(str, widths.values())) or "none of CLIP's"
            raise DreamCacheError(
                f"The text encoder belongs to another CLIP than the image encoder (its vectors are {found} wide, the "
                f"images' {image_encoder.channels}): {_ADVICE}."
            )
        self._clip, self._encoder = clip, encoders[self._name]
        if not _has_projection(clip, self._encoder.transformer.text_projection):
            raise DreamCacheError(
                "The text encoder has no text projection, as in SD1.x checkpoints, so it cannot compare prompts with "
                f"images: {_ADVICE}."
            )
        self.description = _describe(
            f"CLIP text encoder, {image_encoder.channels} wide", self._encoder.num_layers, file
        )

    @property
    def network(self) -> torch.nn.Module:
        return self._encoder.transformer

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
    """Load an original DINO, such as ViT-S/16, or a DINOv2. Raises DreamCacheError for a file of another network."""
    network = load_vision_transformer(path)
    if network:
        return DinoEncoder(network, path)
    clip_vision = _load_clip_vision(path, "a DINO")
    if clip_vision is None or clip_vision.model_type != "dinov2":
        raise DreamCacheError(f"{path.name} contains no known DINO: use DINO's ViT-S/16.")
    return ClipVisionEncoder(clip_vision, path)


def load_clip_image_encoder(path: Path) -> ClipVisionEncoder:
    """Load the image encoder of a CLIP of any size. Raises DreamCacheError for a file of another network."""
    clip_vision = _load_clip_vision(path, "a CLIP", any_size=True)
    if clip_vision is None:
        raise DreamCacheError(f"{path.name} contains no known CLIP image encoder: use a complete CLIP.")
    return clip_image_encoder(clip_vision, path)


def clip_image_encoder(clip_vision: ClipVisionModel, file: Path | None = None) -> ClipVisionEncoder:
    """The image encoder of a CLIP. Raises DreamCacheError if `clip_vision` is another network."""
    encoder = ClipVisionEncoder(clip_vision, file)
    if encoder.kind != "CLIP":
        raise DreamCacheError(f"A {encoder.kind} is not a CLIP, which CLIP-I and CLIP-T need: use a CLIP.")
    return encoder


def load_clip_text_encoder(path: Path, image_encoder: ClipVisionEncoder) -> ClipTextEncoder | None:
    """Load the text encoder of the same CLIP as `image_encoder`; None if the file has no text encoder.

    Raises DreamCacheError if it belongs to another CLIP or lacks its projection.
    """
    with loading(path, "a CLIP"):
        tensors = comfy.utils.load_torch_file(str(path))
        embedding = tensors.get("text_model.embeddings.token_embedding.weight")
        if embedding is None:
            return None
        # Without it, ComfyUI assumes the size of ViT-L/14 for all smaller ones.
        config = _size_config(tensors, "text_model", embedding.shape[1])
        clip = comfy.sd.load_clip([str(path)], model_options={"model_config": config})
        encoder = ClipTextEncoder(clip, image_encoder, path)
        check_complete(path, encoder.network, tensors)
    return encoder


def load_mask_finder(path: Path) -> MaskFinder:
    """Load a network of ComfyUI's background removal. Raises DreamCacheError for another one, or an old ComfyUI."""
    try:
        import comfy.bg_removal_model
    except ModuleNotFoundError as error:
        raise DreamCacheError("This ComfyUI is too old to remove backgrounds: update it.") from error
    with loading(path, "a BiRefNet"):
        tensors = comfy.utils.load_torch_file(str(path))
        # A copy, from which ComfyUI takes the tensors it has used.
        model = comfy.bg_removal_model.load_background_removal_model(dict(tensors))
        if model is None:
            raise DreamCacheError(f"{path.name} contains no background-removal network: use a BiRefNet.")
        check_complete(path, model.model, tensors)

    def find_mask(image: torch.Tensor) -> torch.Tensor:
        mask = model.encode_image(image.unsqueeze(0))[0].float().cpu()
        check_finite(mask, f"The mask that {path.name} finds", "start ComfyUI with --force-fp32, or use another file")
        return mask

    return find_mask


def _load_clip_vision(path: Path, network: str, any_size: bool = False) -> ClipVisionModel | None:
    """Load a network that ComfyUI knows as CLIP_VISION; None if the file holds none.

    `network`: to be loaded, in words. `any_size`: load CLIPs of sizes that ComfyUI doesn't detect too.
    """
    with loading(path, network):
        tensors = comfy.utils.load_torch_file(str(path))
        if "visual.transformer.resblocks.0.attn.in_proj_weight" in tensors:
            tensors = comfy.clip_vision.convert_to_transformers(tensors, "visual.")
        # A copy, from which ComfyUI takes the tensors it has used.
        clip_vision = comfy.clip_vision.load_clipvision_from_sd(dict(tensors))
        if clip_vision is None and any_size:
            clip_vision = _load_other_clip_vision(tensors)
        if clip_vision:
            check_complete(path, clip_vision.model, tensors)
    return clip_vision


def _load_other_clip_vision(tensors: dict[str, torch.Tensor]) -> ClipVisionModel | None:
    """Load a CLIP image encoder of a size that ComfyUI doesn't detect, such as OpenAI's ViT-B/32."""
    patches = tensors.get("vision_model.embeddings.patch_embedding.weight")
    projection = tensors.get("visual_projection.weight")
    if patches is None or projection is None:
        return None
    width, _, patch, _ = patches.shape
    config = _size_config(tensors, "vision_model", width)
    if config["num_hidden_layers"] < _FEWEST_LAYERS:
        return None
    positions = tensors["vision_model.embeddings.position_embedding.weight"]
    clip_vision = ClipVisionModel(
        {
            **config,
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


def _size_config(tensors: dict[str, torch.Tensor], encoder: str, width: int) -> dict[str, int]:
    """The size entries of an encoder's configuration. `encoder`: prefix of its tensors. `width`: channels."""
    # Also those that lack some of their weights, which `check_complete` then names.
    layers = {name.split(".")[3] for name in tensors if name.startswith(f"{encoder}.encoder.layers.")}
    return {
        "hidden_size": width,
        "num_attention_heads": width // _HEAD_CHANNELS,
        "num_hidden_layers": len(layers),
        "intermediate_size": len(tensors[f"{encoder}.encoder.layers.0.mlp.fc1.weight"]),
    }


def _has_projection(clip: comfy.sd.CLIP, projection: torch.nn.Linear) -> bool:
    """Whether a CLIP was loaded with its text projection.

    If its file has none, ComfyUI leaves the weight uninitialized, which the weight doesn't show; so the file is looked
    up. A CLIP that doesn't come from a file is assumed to have one.
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


def _describe(network: str, layers: int, file: Path | None) -> str:
    return f"{network}, {layers} layers" + (f", {name_and_hash(file)}" if file else "")
