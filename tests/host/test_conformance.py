"""The numbers of the authors' own network, reproduced through ComfyUI's ModelPatcher. See conformance/README.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.unet import TransformerLayer, UNetStructure, select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.caching_pass import record_references
from dreamcache.nodes.host.patching.injection import Injection, wrap_for_sampling
from safetensors import safe_open
from support.miniature import models

VECTORS = Path(__file__).parents[1] / "support" / "conformance"
FAMILIES = ["sd15", "sd21"]
BOUND = 1e-4


class Vectors:
    """One family's network, adapter and numbers."""

    def __init__(
        self, family: str, dtype: torch.dtype = torch.float32, adapter_dtype: torch.dtype = torch.float32
    ) -> None:
        with safe_open(VECTORS / f"{family}_mini.safetensors", "pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.model = models.unet_patcher(family, self.config["seed"], dtype)
        structure = structure_of(self.model)
        adapter = Adapter(select_layers(structure.layers), structure.base_model)
        adapter.load_state_dict(
            {
                name: models.generated_tensor(models.authors_name(name), tuple(tensor.shape), self.config["seed"])
                for name, tensor in adapter.state_dict().items()
            }
        )
        self.adapter = wrap_for_sampling(adapter.to(adapter_dtype))

    def encode(self) -> ReferenceCache:
        """The vectors give what enters the U-Net: undo what ComfyUI does to a latent on its way there."""
        model = self.model.model
        sigma = float(model.model_sampling.sigma(torch.tensor([1.0])))
        latent = model.process_latent_out(self.tensors["ref_latent"] * math.sqrt(1 + sigma**2))
        conditioning = [[self.tensors["null_context"], {}]]
        return record_references(self.model, latent, torch.zeros_like(latent), conditioning, timestep=1, prompt="")

    def generate(self, model) -> torch.Tensor:
        comfy.model_management.load_models_gpu([model, *model.get_additional_models()])
        x, timesteps, context = (self.tensors[name] for name in ("x", "timesteps", "context"))
        dtype = model.model.get_dtype()
        with torch.no_grad():
            return model.model.diffusion_model(
                x.to(dtype),
                timesteps,
                context.to(dtype),
                transformer_options=model.model_options["transformer_options"],
            ).float()


@pytest.fixture(scope="module", params=FAMILIES)
def vectors(request: pytest.FixtureRequest) -> Vectors:
    return Vectors(request.param)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_cached_features_are_the_authors(vectors: Vectors) -> None:
    cache = vectors.encode()
    for number, layer in enumerate(vectors.adapter.model.layers):
        theirs = vectors.tensors[f"cache.memory_layer_{number}"]
        assert relative_error(cache.batches[0].features[layer.name], theirs) < BOUND


def test_prediction_with_a_reference_is_the_authors(vectors: Vectors) -> None:
    with_reference = inject(vectors.model, Injection(vectors.adapter, vectors.encode()))
    assert relative_error(vectors.generate(with_reference), vectors.tensors["eps_with_reference"]) < BOUND


def test_prediction_without_a_reference_is_the_authors(vectors: Vectors) -> None:
    assert relative_error(vectors.generate(vectors.model), vectors.tensors["eps_without_reference"]) < BOUND


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [
        (torch.float32, torch.float16),
        (torch.float32, torch.float8_e4m3fn),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_any_precision_of_model_and_adapter_stays_close(dtype: torch.dtype, adapter_dtype: torch.dtype) -> None:
    vectors = Vectors("sd15", dtype, adapter_dtype)
    with_reference = inject(vectors.model, Injection(vectors.adapter, vectors.encode()))
    # In bfloat16 the plain network is off by 0.018 already; one that doesn't read the reference, by 0.74.
    bound = 0.05 if adapter_dtype.itemsize > 1 else 0.1
    assert relative_error(vectors.generate(with_reference), vectors.tensors["eps_with_reference"]) < bound


def test_the_authors_own_file_gives_the_same_numbers() -> None:
    vectors = Vectors("sd21")
    file = load_adapter(VECTORS / "official_format_sd21_mini.pt")
    injection = Injection(wrap_for_sampling(file.adapter), vectors.encode())
    prediction = vectors.generate(inject(vectors.model, injection))
    assert relative_error(prediction, vectors.tensors["eps_with_reference"]) < BOUND


def full_size_layers(structure: UNetStructure, heads_at: dict[int, int]) -> list[TransformerLayer]:
    """The miniature's layers as wide as the published network's."""
    scale = 320 // structure.model_channels
    return [
        TransformerLayer(layer.name, layer.channels * scale, heads_at[layer.channels * scale])
        for layer in structure.layers
    ]


@pytest.mark.parametrize(
    ("family", "heads_at"), [("sd15", {320: 8, 640: 8, 1280: 8}), ("sd21", {320: 5, 640: 10, 1280: 20})]
)
def test_full_size_adapter_has_the_papers_parameters(family: str, heads_at: dict[int, int]) -> None:
    layers = full_size_layers(structure_of(models.unet_patcher(family)), heads_at)
    with torch.device("meta"):
        adapter = Adapter(select_layers(layers), "")
    assert adapter.parameter_count == 25_207_040
    shapes = json.loads((VECTORS / "official_format_sd21_keys.json").read_text())
    ours = {f"diffusion_model.{models.authors_name(name)}": tensor for name, tensor in adapter.state_dict().items()}
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == shapes
