"""DINO and CLIP as Hugging Face implements them, small and with random weights, and their files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

SIDE = 64
"""The side of their input images, in pixels."""


def new_dino() -> transformers.ViTModel:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=256,
        image_size=SIDE,
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    network = transformers.ViTModel(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def new_clip() -> transformers.CLIPModel:
    torch.manual_seed(0)
    half = {"num_hidden_layers": 2, "intermediate_size": 256}
    config = transformers.CLIPConfig(
        text_config={**half, "hidden_size": 64, "num_attention_heads": 1, "eos_token_id": 49407},
        vision_config={**half, "hidden_size": 128, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16},
        projection_dim=64,
    )
    # In numbers of float16, in which ComfyUI keeps text encoders.
    return transformers.CLIPModel(config).half().float().eval()


def write(network: transformers.PreTrainedModel, path: Path, without: tuple[str, ...] = ()) -> Path:
    """The file that Hugging Face publishes a network in, without the tensors whose names begin with `without`."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        tensors = load_file(Path(folder, "model.safetensors"))
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(without)}, path)
    return path


def in_authors_names(theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of Hugging Face's file of `new_dino`, as DINO's authors name them."""
    ours = {"cls_token": theirs["embeddings.cls_token"], "pos_embed": theirs["embeddings.position_embeddings"]}
    for part in ("weight", "bias"):
        ours[f"patch_embed.proj.{part}"] = theirs[f"embeddings.patch_embeddings.projection.{part}"]
        ours[f"norm.{part}"] = theirs[f"layernorm.{part}"]
        for number in range(3):
            block, layer = f"blocks.{number}", f"encoder.layer.{number}"
            qkv = [theirs[f"{layer}.attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            ours[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
            ours[f"{block}.attn.proj.{part}"] = theirs[f"{layer}.attention.output.dense.{part}"]
            ours[f"{block}.norm1.{part}"] = theirs[f"{layer}.layernorm_before.{part}"]
            ours[f"{block}.norm2.{part}"] = theirs[f"{layer}.layernorm_after.{part}"]
            ours[f"{block}.mlp.fc1.{part}"] = theirs[f"{layer}.intermediate.dense.{part}"]
            ours[f"{block}.mlp.fc2.{part}"] = theirs[f"{layer}.output.dense.{part}"]
    return ours
