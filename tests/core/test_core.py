"""The core by itself: which layers it selects, how a reference is prepared, and that files give back what was saved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter, save_adapter
from dreamcache.dreamcache_core.adapter.fused import fuse
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.adapter.provenance import Provenance, hash_weights
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache, Source
from dreamcache.dreamcache_core.reference.combining import average, combine
from dreamcache.dreamcache_core.reference.file import Precision, load_references, make_thumbnail, save_references
from dreamcache.dreamcache_core.reference.image import resize_to_area, subject_on_white
from dreamcache.dreamcache_core.unet import DEFAULT_STAGES, STAGES, UNetStructure, select_layers
from dreamcache.dreamcache_core.version import VERSION
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support.structures import SD15, generated_state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def structure() -> UNetStructure:
    return SD15


@pytest.fixture
def batch(structure) -> ReferenceBatch:
    layers = select_layers(structure.layers)
    features = {layer.name: torch.randn(2, layer.channels, 3, 5) for layer in layers}
    return ReferenceBatch(features, structure.base_model, layers, latent_size=(24, 40), timestep=1, prompt="")


@pytest.fixture
def cache(batch: ReferenceBatch) -> ReferenceCache:
    return ReferenceCache((batch,))


def test_the_core_needs_nothing_of_comfyui() -> None:
    """Imported from this folder alone, it brings in no module of ComfyUI's."""
    script = "import dreamcache_core, sys; print([m for m in sys.modules if m.startswith(('comfy', 'folder_paths'))])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_default_layers_are_the_papers(structure) -> None:
    names = [layer.name for layer in select_layers(structure.layers)]
    assert names == ["middle_block.1", *(f"output_blocks.{number}.1" for number in (4, 6, 8, 10))]


def test_the_encoder_can_be_cached_too(structure) -> None:
    names = [layer.name for layer in select_layers(structure.layers, STAGES)]
    assert names[:3] == ["input_blocks.2.1", "input_blocks.5.1", "input_blocks.8.1"]
    assert names[3:] == [layer.name for layer in select_layers(structure.layers)]


def test_the_subject_is_cut_out_and_centred_on_white() -> None:
    image = torch.zeros(1, 60, 90, 3)
    image[:, 10:30, 40:80] = torch.tensor([1.0, 0.0, 0.0])
    mask = torch.zeros(1, 60, 90)
    mask[:, 10:30, 40:80] = 1.0
    (canvas,) = subject_on_white(image, mask, 100)
    assert canvas.shape == (100, 100, 3)
    subject = canvas[..., 1] < 0.5
    rows, columns = subject.any(1).nonzero(), subject.any(0).nonzero()
    # Twice as wide as high, with a tenth of the canvas left on each side.
    assert (int(columns.min()), int(columns.max())) == (10, 89)
    assert (int(rows.min()), int(rows.max())) == (30, 69)
    assert torch.equal(canvas[~subject].unique(), torch.ones(1))


def test_a_reference_keeps_its_proportions_and_gets_the_area() -> None:
    assert resize_to_area(torch.rand(1, 300, 1200, 3), 512).shape == (1, 256, 1024, 3)
    assert resize_to_area(torch.rand(1, 301, 500, 3), 0).shape == (1, 304, 496, 3)


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


def test_the_version_is_that_of_the_package() -> None:
    assert re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1] == VERSION  # type: ignore[index]


def test_a_models_hash_is_the_same_in_half_precision_and_another_after_any_change() -> None:
    weights = {f"layer{number}.weight": torch.randn(100, 7) for number in range(3)}
    halved = {name: tensor.half() for name, tensor in reversed(weights.items())}
    assert hash_weights(halved) == hash_weights(weights)
    moved = {**weights, "layer1.weight": weights["layer1.weight"] * 1.01}
    renamed = {name.replace("2", "3"): tensor for name, tensor in weights.items()}
    assert len({hash_weights(weights), hash_weights(moved), hash_weights(renamed)}) == 3


@pytest.mark.parametrize(("precision", "error"), [("float16", 5e-4), ("float8", 0.03)])
def test_saved_references_load_as_they_were(
    batch: ReferenceBatch, tmp_path: Path, precision: Precision, error: float
) -> None:
    source = Source("0123456789abcdef", True, (make_thumbnail(Image.new("RGB", (90, 30), "red")),), "0.9")
    smaller = {name: features[:1, :, :2, :2] for name, features in batch.features.items()}
    other = replace(batch, features=smaller, latent_size=(16, 16), timestep=7, prompt="a cup", source=source)
    both = combine([ReferenceCache((batch,)), ReferenceCache((other,))], [1.0, 0.5])
    path = tmp_path / "cache.safetensors"
    save_references(path, both, precision)
    file = load_references(path)
    assert (file.references.base_model, file.references.layers) == (batch.base_model, batch.layers)
    for ours, theirs in zip(file.references.batches, both.batches, strict=True):
        for field in ("latent_size", "timestep", "prompt", "source", "strength"):
            assert getattr(ours, field) == getattr(theirs, field)
    assert file.error and file.error < error
    for layer in batch.layers:
        stored, exact = file.references.tokens(layer.name).float(), both.tokens(layer.name)
        # The error that the file tells is that of the worst reference and layer.
        assert (stored - exact).norm() <= file.error * exact.norm() * 1.001
    assert file.description.splitlines()[0] == (
        f"3 references for {batch.base_model}, {precision}, {file.error_description}"
    )
    assert file.description.endswith(
        '128×128 pixels, timestep 7, prompt "a cup", strength 0.5, '
        "encoded with 0123456789ab with LoRAs by DreamCache 0.9"
    )


def test_a_thumbnail_is_the_whole_picture() -> None:
    picture = Image.new("RGB", (900, 300), "red")
    picture.paste("blue", (450, 0, 900, 300))
    (thumbnail,) = Source("", False, (make_thumbnail(picture),)).images
    assert thumbnail.size == (160, 53)
    for place, colour in ((20, [1.0, 0.0, 0.0]), (140, [0.0, 0.0, 1.0])):
        torch.testing.assert_close(to_tensor(thumbnail)[26, place], torch.tensor(colour), rtol=0, atol=0.03)


def test_a_file_that_lacks_features_is_refused(cache: ReferenceCache, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    save_references(path, cache)
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names[1:]}
    save_file(tensors, path, metadata)
    with pytest.raises(DreamCacheError, match=re.escape(f"cache.safetensors lacks '{names[0]}'")):
        load_references(path)


def test_a_file_of_float8_is_half_as_large_and_one_of_some_stages_has_no_others(structure, tmp_path: Path) -> None:
    layers = select_layers(structure.layers, STAGES)
    features = {layer.name: torch.randn(1, layer.channels, 16, 16) for layer in layers}
    batch = ReferenceBatch(features, structure.base_model, layers, (64, 64), timestep=1, prompt="")
    cache = ReferenceCache((batch,))
    save_references(tmp_path / "float16", cache, "float16")
    save_references(tmp_path / "float8", cache, "float8")
    assert (tmp_path / "float8").stat().st_size < 0.53 * (tmp_path / "float16").stat().st_size
    save_references(tmp_path / "decoder", cache, stages=DEFAULT_STAGES)
    assert load_references(tmp_path / "decoder").references.layers == select_layers(structure.layers)


def test_a_file_of_the_first_version_loads(cache: ReferenceCache, tmp_path: Path) -> None:
    header = {
        "base_model": cache.base_model,
        "layers": [layer.to_json() for layer in cache.layers],
        "latent_size": [24, 40],
        "timestep": 1,
        "prompt": "",
    }
    metadata = {"format": "dreamcache.reference_cache", "version": "1", "header": json.dumps(header)}
    save_file(dict(cache.batches[0].features), tmp_path / "first.safetensors", metadata)
    file = load_references(tmp_path / "first.safetensors")
    assert (file.precision, file.error) == ("float32", None)
    (loaded,) = file.references.batches
    for field in ("base_model", "layers", "latent_size", "timestep", "prompt"):
        assert getattr(loaded, field) == getattr(cache.batches[0], field)
    for layer in cache.layers:
        assert torch.equal(file.references.tokens(layer.name), cache.tokens(layer.name))


def test_features_that_float16_cannot_hold_are_refused(batch: ReferenceBatch, tmp_path: Path) -> None:
    large = replace(batch, features={name: features * 1e6 for name, features in batch.features.items()})
    with pytest.raises(DreamCacheError, match="too large for float16"):
        save_references(tmp_path / "large.safetensors", ReferenceCache((large,)))
    assert not list(tmp_path.iterdir())


def test_tokens_of_several_references_stand_in_a_row(cache: ReferenceCache) -> None:
    layer = cache.layers[0].name
    tokens = cache.tokens(layer)
    assert tokens.shape == (1, 2 * 3 * 5, cache.layers[0].channels)
    assert torch.equal(tokens[0, 15 + 5 + 2], cache.batches[0].features[layer][1, :, 1, 2])


def test_of_a_reference_with_a_subject_that_is_read_alone(batch: ReferenceBatch, tmp_path: Path) -> None:
    subject = torch.zeros(2, 24, 40)
    subject[0, :8] = 1  # the first of 3 rows of tokens
    subject[1, 20, 39] = 1  # less than half of the last token, and more than in any other
    layer = batch.layers[0].name
    whole = batch.features[layer].half()
    save_references(tmp_path / "cache.safetensors", ReferenceCache((replace(batch, subject=subject),)))
    loaded = load_references(tmp_path / "cache.safetensors").references
    first, second = loaded.tokens(layer)[0].split([5, 1])
    assert torch.equal(first, whole[0, :, 0].T)
    assert torch.equal(second, whole[1, :, 2, 4].unsqueeze(0))
    assert loaded.tokens(layer).shape[:2] == (1, 6)


def test_combined_references_keep_their_subjects_and_an_average_has_none(batch: ReferenceBatch, tmp_path: Path) -> None:
    subject = torch.zeros(2, 24, 40)
    subject[0, :8] = 1
    subject[1] = 1
    layer = batch.layers[0].name
    part = ReferenceCache((replace(batch, subject=subject),))
    whole, strengths = batch.features[layer].flatten(2).transpose(1, 2), [1.0, 1.0]
    save_references(tmp_path / "paired.safetensors", combine([part, part], strengths, per_latent=True))
    loaded = load_references(tmp_path / "paired.safetensors").references
    paired, bias = loaded.tokens(layer), loaded.bias(layer)
    assert bias is not None
    for number in (0, 2):
        assert torch.equal(paired[number, :5], whole[0, :5].half())
        assert not bias[number, 0, :5].any() and bool((bias[number, 0, 5:] < -1000).all())
        assert torch.equal(paired[number + 1], whole[1].half())
        assert not bias[number + 1].any()
    assert combine([part, ReferenceCache((batch,))], strengths).tokens(layer).shape[1] == 5 + 15 + 2 * 15
    averaged = average([part, part], strengths)
    assert averaged.batches[0].subject is None
    assert averaged.tokens(layer).shape[1] == 15


def test_files_of_another_kind_or_a_newer_version_are_refused(cache: ReferenceCache, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_references(path, cache)
    with pytest.raises(DreamCacheError, match=r"reference_cache file, not a DreamCache adapter"):
        load_adapter(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(dict(cache.batches[0].features), path, metadata={**metadata, "version": "3"})
    with pytest.raises(DreamCacheError, match="newer DreamCache"):
        load_references(path)
    save_file(dict(cache.batches[0].features), path, metadata={**metadata, "header": "{"})
    with pytest.raises(DreamCacheError, match="damaged"):
        load_references(path)
