"""What comes from other nodes: NaN is named where it enters, and what is out of range is clamped."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.lora
import comfy.sd
import pytest
import safetensors.torch
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_api.latest._input.curve_types import LinearCurve
from dreamcache import DreamCacheExtension
from dreamcache.dreamcache_core.adapter.file import SUFFIXES
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.generation import GenerationSettings
from dreamcache.nodes.host.base_model import load_checkpoint, loras_of
from dreamcache.nodes.host.folders import ADAPTERS, REFERENCES, register_models_folder
from dreamcache.nodes.host.generation import generate
from dreamcache.nodes.host.inputs import as_region, fit_masks, to_rgb
from dreamcache.nodes.host.reference import encode_reference
from dreamcache.nodes.strengths import DreamCacheStrengths
from support.miniature import models

NAN, INFINITE = math.nan, math.inf
IMAGE, MASK = torch.full((1, 64, 96, 3), 0.5), torch.zeros(1, 64, 96)
MASK[:, 16:48, 24:72] = 1


def spoiled(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[0, 20, 30] = value
    return tensor


def vae_that_overflows(part: str) -> comfy.sd.VAE:
    """A VAE whose last layer gives NaN, as one in float16 does. `part`: `encoder` or `decoder`."""
    vae = models.vae()
    network = getattr(vae.first_stage_model, f"taesd_{part}")
    with torch.no_grad():
        list(network.parameters())[-1].fill_(NAN)
    return vae


@pytest.fixture(scope="module")
def encode() -> Callable:
    return partial(encode_reference, models.unet_patcher("sd15"), models.vae(), models.clip("sd15"), resolution=64)


@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_nan_in_what_is_connected_is_named(encode: Callable, value: float) -> None:
    with pytest.raises(DreamCacheError, match="The image contains NaN or infinity: change the node that makes"):
        encode(spoiled(IMAGE, value))
    with pytest.raises(DreamCacheError, match="The mask contains NaN or infinity: change the node that makes"):
        encode(IMAGE, spoiled(MASK, value))
    with pytest.raises(DreamCacheError, match="The region contains NaN or infinity: change the node that makes"):
        as_region(spoiled(MASK, value))


def test_every_node_refuses_nan_for_a_number() -> None:
    register_models_folder(ADAPTERS, SUFFIXES)
    register_models_folder(REFERENCES, SUFFIXES)
    refused = 0
    for node in asyncio.run(DreamCacheExtension().get_node_list()):
        for of_node in node.GET_SCHEMA().inputs:
            if isinstance(of_node, io.Float.Input):
                sentence = f"^{of_node.id} of {node.GET_SCHEMA().display_name} is nan: enter a number, "
                with pytest.raises(DreamCacheError, match=sentence):
                    node.execute(**{of_node.id: NAN})
                refused += 1
    assert refused > 10


def test_nan_in_a_curve_is_named() -> None:
    curve = LinearCurve([(0.0, NAN), (1.0, 1.0)])
    with pytest.raises(DreamCacheError, match="The curve contains NaN or infinity: draw another"):
        DreamCacheStrengths.execute(1.0, 1.0, 1.0, 1.0, "constant", "", curve)


def test_a_vae_that_overflows_is_named() -> None:
    model, clip = models.unet_patcher("sd15"), models.clip("sd15")
    with pytest.raises(DreamCacheError, match=r"What the VAE makes of the image contains NaN .* ComfyUI's --fp32-vae"):
        encode_reference(model, vae_that_overflows("encoder"), clip, IMAGE, resolution=64)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a cup"))
    draw = partial(generate, positive=conditioning, negative=conditioning, settings=GenerationSettings(steps=1))
    with pytest.raises(DreamCacheError, match=r"What the VAE makes of the latent contains NaN .* ComfyUI's --fp32-vae"):
        draw(model, vae_that_overflows("decoder"), latent={"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(DreamCacheError, match="What the model has sampled contains NaN or infinity"):
        draw(model, models.vae(), latent={"samples": torch.full((1, 4, 8, 8), NAN)})


def test_what_is_out_of_range_is_clamped() -> None:
    region = as_region(torch.tensor([[-0.5, 0.25], [1.0, 7.0]]))
    assert region is not None
    assert region.tolist() == [[[0, 0.25], [1, 1]]]
    assert to_rgb(torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 1, 1, 3)).flatten().tolist() == [0, 0.5, 1]
    assert float(fit_masks(IMAGE, 3 * MASK).max()) == 1


def test_a_mask_of_another_shape_is_refused_with_both_sizes(encode: Callable) -> None:
    with pytest.raises(DreamCacheError, match="The mask is 64×96 pixels and its picture 96×64, which is another shape"):
        encode(IMAGE, MASK.transpose(1, 2))
    # A smaller one of the same shape is enlarged, and one without a shape fits everything.
    assert fit_masks(IMAGE, MASK[:, ::2, ::2]).shape == (1, 64, 96)
    assert fit_masks(IMAGE, torch.ones(1, 8, 8)).min() == 1


def test_a_grey_mask_is_said_to_be_grey(encode: Callable) -> None:
    with pytest.raises(DreamCacheError, match="Mask 1 is at most 40% white, so there is no subject to encode"):
        encode(IMAGE, 0.4 * MASK)
    # As ComfyUI's Load Image makes of one of labels, 0 and 1.
    with pytest.raises(DreamCacheError, match=r"Mask 1 is at most 0\.4% white, so there is no subject to encode"):
        encode(IMAGE, MASK / 255)


def with_lora(model: ModelPatcher, seed: int = models.SEED, strength: float = 1.0) -> ModelPatcher:
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patched = model.clone()
    assert patched.add_patches(comfy.lora.load_lora(models.lora("sd15", seed=seed), keys), strength)
    return patched


def test_loras_are_told_apart_by_their_weights_and_strengths() -> None:
    model = models.unet_patcher("sd15")
    assert loras_of(model) is None
    first = loras_of(with_lora(model))
    assert first == loras_of(with_lora(models.unet_patcher("sd15")))
    others = [with_lora(model, strength=0.5), with_lora(model, seed=7), with_lora(with_lora(model))]
    assert len({first, *map(loras_of, others)}) == 4


def test_a_checkpoint_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(DreamCacheError) as raised:
            load_checkpoint(tmp_path / name)
        return str(raised.value).replace(str(tmp_path), "…")

    assert refusal("gone.safetensors") == "…/gone.safetensors cannot be read: it does not exist; check its name."
    (tmp_path / "folder.safetensors").mkdir()
    assert refusal("folder.safetensors").startswith("…/folder.safetensors cannot be read: it is a folder, not a file")
    (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
    assert refusal("damaged.safetensors").startswith("damaged.safetensors cannot be loaded as a checkpoint, because")
    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert refusal("other.safetensors").startswith("other.safetensors cannot be loaded as a checkpoint, because")
