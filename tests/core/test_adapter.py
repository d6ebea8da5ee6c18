"""Adapters: files give back what was saved, with its provenance, and a fused adapter changes the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import describe_adapter, load_adapter, save_adapter
from dreamcache.dreamcache_core.adapter.fused import fuse
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.adapter.provenance import Provenance, hash_weights
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.unet import UNetStructure, select_layers
from dreamcache.dreamcache_core.version import VERSION
from safetensors import safe_open
from safetensors.torch import save_file
from support.structures import SD15, generated_state

AUTHORS_FILE = Path(__file__).parents[1] / "support" / "conformance" / "official_format_sd21_mini.pt"


@pytest.fixture
def structure() -> UNetStructure:
    return SD15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_adapter_loads_as_it_was(structure, tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = Adapter(select_layers(structure.layers), structure.base_model).to(dtype)
    save_adapter(tmp_path / "adapter.safetensors", adapter)
    loaded = load_adapter(tmp_path / "adapter.safetensors").adapter
    assert loaded.layers == adapter.layers
    assert loaded.base_model == adapter.base_model
    (tmp_path / "another").touch()
    # Others may read it, as they may any file: a models folder is often shared.
    assert (tmp_path / "adapter.safetensors").stat().st_mode == (tmp_path / "another").stat().st_mode
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == dtype


@pytest.mark.parametrize("references", [1, 2])
def test_a_fused_adapter_makes_the_same_change(structure, references: int) -> None:
    adapter = Adapter(select_layers(structure.layers), structure.base_model)
    adapter.load_state_dict(generated_state(adapter))
    fused = fuse(adapter)
    for layer in adapter.layers:
        x, self_attention, cached = (torch.randn(rows, 6, layer.channels) for rows in (4, 4, references))
        changes = [
            each[layer.name](x, self_attention, *each[layer.name].keys_values(cached)) for each in (adapter, fused)
        ]
        torch.testing.assert_close(changes[1], changes[0], rtol=1e-5, atol=1e-5)


def test_a_saved_adapter_tells_of_its_trainings(structure, tmp_path: Path) -> None:
    trainings = Provenance("0123456789abcdef", 200_000, 48, 400_000), Provenance("fedcba9876543210", 500, 4, 30, "0.9")
    adapter = Adapter(select_layers(structure.layers), structure.base_model, provenance=trainings)
    save_adapter(tmp_path / "adapter.safetensors", adapter, torch.float16)
    loaded = load_adapter(tmp_path / "adapter.safetensors")
    assert loaded.adapter.provenance == trainings
    assert loaded.description.splitlines()[2:] == [
        f"trained 200,000 steps of 48 on 400,000 triplets, with the base model 0123456789ab, by DreamCache {VERSION}",
        "trained 500 steps of 4 on 30 triplets, with the base model fedcba987654, by DreamCache 0.9",
    ]
    assert {tensor.dtype for tensor in loaded.adapter.state_dict().values()} == {torch.float16}
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {torch.float32}


def test_an_adapter_file_without_provenance_loads(structure, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, Adapter(select_layers(structure.layers), structure.base_model))
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    header = {name: value for name, value in json.loads(metadata["header"]).items() if name != "provenance"}
    save_file(tensors, path, metadata={**metadata, "header": json.dumps(header)})
    loaded = load_adapter(path)
    assert loaded.adapter.provenance == ()
    assert len(loaded.description.splitlines()) == 2


def test_an_adapter_in_use_does_not_change_with_its_file(structure, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, Adapter(select_layers(structure.layers), structure.base_model))
    loaded = load_adapter(path).adapter
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("channels", [math.inf, "320", -1, 0, [], 10**30, True, 7.0, None, "missing", 33])
def test_an_impossible_layer_gives_the_same_sentence_when_described_and_when_loaded(
    structure, tmp_path: Path, channels: object
) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, Adapter(select_layers(structure.layers), structure.base_model))
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    header = json.loads(metadata["header"])
    header["layers"][0]["channels"] = channels
    if channels == "missing":
        del header["layers"][0]["channels"]
    save_file(tensors, path, metadata={**metadata, "header": json.dumps(header)})
    with pytest.raises(
        DreamCacheError, match=r"^adapter\.safetensors has a damaged header: download it again\.$"
    ) as raised:
        load_adapter(path)
    assert describe_adapter(path).problem == str(raised.value)


def test_a_models_hash_is_the_same_in_half_precision_and_another_after_any_change() -> None:
    weights = {f"layer{number}.weight": torch.randn(100, 7) for number in range(3)}
    halved = {name: tensor.half() for name, tensor in reversed(weights.items())}
    assert hash_weights(halved) == hash_weights(weights)
    moved = {**weights, "layer1.weight": weights["layer1.weight"] * 1.01}
    renamed = {name.replace("2", "3"): tensor for name, tensor in weights.items()}
    assert len({hash_weights(weights), hash_weights(moved), hash_weights(renamed)}) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named_when_the_file_is_loaded(structure, tmp_path: Path, value: float) -> None:
    adapter = Adapter(select_layers(structure.layers), structure.base_model)
    with torch.no_grad():
        adapter["middle_block.1"].to_k.weight[3, 5] = value
    save_adapter(tmp_path / "adapter.safetensors", adapter, torch.float16)
    with pytest.raises(DreamCacheError, match=r"weight middle_block\.1\.to_k\.weight of \S+ contains NaN"):
        load_adapter(tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model.", "model.diffusion_model."])
def test_the_authors_format_loads_under_the_names_of_a_wrapped_model(tmp_path: Path, prefix: str) -> None:
    adapter = load_adapter(AUTHORS_FILE).adapter
    plain = torch.load(AUTHORS_FILE, weights_only=True)
    wrapped = {prefix + name.removeprefix("diffusion_model."): tensor for name, tensor in plain.items()}
    torch.save(wrapped, tmp_path / "wrapped.PT")
    save_file(wrapped, tmp_path / "wrapped.SAFETENSORS")
    for name in ("wrapped.PT", "wrapped.SAFETENSORS"):
        loaded = load_adapter(tmp_path / name).adapter
        assert set(loaded.layers) == set(adapter.layers)
        assert all(torch.equal(tensor, adapter.state_dict()[name]) for name, tensor in loaded.state_dict().items())
        assert describe_adapter(tmp_path / name).problem is None
