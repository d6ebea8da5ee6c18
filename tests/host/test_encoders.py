"""Image and text encoders: their vectors are Hugging Face's, and files of other networks are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd1_clip
import pytest
import torch
import transformers
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.nodes.host import encoders
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image
from safetensors.torch import load_file, save_file
from support.damage import attack, damage_tensor_file, verdict
from support.miniature import models
from support.small_networks import SIDE, new_clip, write

TOKENIZER = Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer")


@pytest.fixture(scope="module")
def clip() -> transformers.CLIPModel:
    return new_clip()


@pytest.fixture
def clip_file(clip: transformers.CLIPModel, tmp_path: Path) -> Path:
    return write(clip, tmp_path / "clip.safetensors")


def test_clips_vectors_are_what_hugging_faces_clip_computes(clip: transformers.CLIPModel, clip_file: Path) -> None:
    images = encoders.load_clip_image_encoder(clip_file)
    prompts = encoders.load_clip_text_encoder(clip_file, images)
    assert prompts
    square = Image.open(PHOTOGRAPH).convert("RGB").resize((SIDE, SIDE))
    pixels = transformers.CLIPImageProcessor(size=SIDE, crop_size=SIDE)(square, return_tensors="pt").pixel_values
    tokens = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)("a dog's (red) hat", return_tensors="pt").input_ids
    with torch.no_grad():
        their_image = clip.visual_projection(clip.vision_model(pixels).pooler_output)[0]
        their_prompt = clip.text_projection(clip.text_model(tokens).pooler_output)[0]
        our_image, our_prompt = images.encode_image(to_tensor(square)), prompts.encode_prompt("a dog's (red) hat")
    torch.testing.assert_close(our_image, their_image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_prompt, their_prompt, rtol=1e-4, atol=1e-5)
    assert images.description.startswith("CLIP ViT/16, 2 layers, clip.safetensors (")


def test_a_text_encoder_without_its_projection_is_refused(clip: transformers.CLIPModel, tmp_path: Path) -> None:
    file = write(clip, tmp_path / "clip_l.safetensors", without=("text_projection",))
    with pytest.raises(DreamCacheError, match="has no text projection"):
        encoders.load_clip_text_encoder(file, encoders.load_clip_image_encoder(file))


def test_a_text_encoder_of_another_clip_is_refused(clip_file: Path) -> None:
    images = encoders.load_clip_image_encoder(clip_file)
    with pytest.raises(DreamCacheError, match=r"another CLIP than .* vectors are 48 wide, the images' 64"):
        encoders.ClipTextEncoder(models.clip("sd15"), images)


def test_dinov2_measures_as_well_but_is_no_clip() -> None:
    encoder = comfy.clip_vision.ClipVisionModel(
        {
            "model_type": "dinov2",
            "hidden_size": 64,
            "num_attention_heads": 1,
            "num_hidden_layers": 3,
            "layer_norm_eps": 1e-6,
            "use_swiglu_ffn": False,
            "patch_size": 14,
            "image_size": 70,
        }
    )
    encoder.load_sd(models.generated_weights(encoder.model, models.SEED))
    assert encoders.ClipVisionEncoder(encoder).encode_image(torch.rand(70, 70, 3)).shape == (64,)
    with pytest.raises(DreamCacheError, match="A DINOv2 is not a CLIP"):
        encoders.clip_image_encoder(encoder)


def test_files_with_weights_of_other_names_or_shapes_are_refused(clip_file: Path, tmp_path: Path) -> None:
    images = encoders.load_clip_image_encoder(clip_file)
    tensors = load_file(clip_file)

    def refusal(load: Callable[[Path], Any], tensors: Mapping[str, torch.Tensor]) -> str:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
        with pytest.raises(DreamCacheError) as raised:
            load(tmp_path / "odd.safetensors")
        return str(raised.value)

    def renamed(name: str) -> dict[str, torch.Tensor]:
        return {each + "_" * (each == name): tensor for each, tensor in tensors.items()}

    def cut(name: str) -> dict[str, torch.Tensor]:
        return {**tensors, name: tensors[name][:-1]}

    for load, part in (
        (encoders.load_clip_image_encoder, "vision_model"),
        (partial(encoders.load_clip_text_encoder, image_encoder=images), "text_model"),
    ):
        name = f"{part}.encoder.layers.1.mlp.fc2.bias"
        assert refusal(load, renamed(name)) == (
            f"odd.safetensors lacks the weight {name}: download it again, or use another file."
        )
        assert refusal(load, cut(name)).startswith("odd.safetensors cannot be loaded as a CLIP, because it is damaged")
    index = "bb.layers.1.blocks.0.attn.relative_position_index"
    sentence = "odd.safetensors lacks the weight bb.patch_embed.proj.weight and 686 more: "
    assert refusal(encoders.load_mask_finder, {index: torch.zeros(144, 144).long()}).startswith(sentence)
    sentence = "odd.safetensors cannot be loaded as a BiRefNet, because it is damaged"
    assert refusal(encoders.load_mask_finder, {index: torch.zeros(3).long()}).startswith(sentence)
    sentence = "odd.safetensors contains no known DINO: "
    assert refusal(encoders.load_dino, {"pos_embed": torch.zeros(1), "cls_token": torch.zeros(1)}).startswith(sentence)


def test_a_damaged_clip_is_refused_or_embeds(
    clip: transformers.CLIPModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = write(clip, tmp_path / "clip_vision.safetensors", without=("text_",))
    sound = path.read_bytes()

    def read() -> None:
        problem = verdict(lambda: encoders.load_clip_image_encoder(path).encode_image(torch.zeros(SIDE, SIDE, 3)))
        assert problem is None or path.name in problem

    count = request.config.getoption("--damaged-files")
    attack(count, "CLIP", path, lambda random: damage_tensor_file(sound, random), read)


def test_files_of_other_networks_are_refused(clip: transformers.CLIPModel, clip_file: Path, tmp_path: Path) -> None:
    pictures_only = write(clip, tmp_path / "clip_vision.safetensors", without=("text_",))
    assert encoders.load_clip_text_encoder(pictures_only, encoders.load_clip_image_encoder(pictures_only)) is None
    with pytest.raises(DreamCacheError, match="contains no known CLIP image encoder"):
        encoders.load_clip_image_encoder(write(clip, tmp_path / "clip_l.safetensors", without=("vision_",)))
    with pytest.raises(DreamCacheError, match="contains no known DINO"):
        encoders.load_dino(clip_file)
    with pytest.raises(DreamCacheError, match="contains no background-removal network"):
        encoders.load_mask_finder(clip_file)
