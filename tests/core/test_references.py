"""Reference caches: files give back what was saved, and tokens of several references stand where they belong."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.io.tensor_file import write_file
from dreamcache.dreamcache_core.reference.cache import CachingInput, ReferenceBatch, ReferenceCache, Source
from dreamcache.dreamcache_core.reference.combining import average, combine
from dreamcache.dreamcache_core.reference.contents import Precision
from dreamcache.dreamcache_core.reference.file import describe_references, load_references, save_references
from dreamcache.dreamcache_core.reference.thumbnails import make_thumbnail
from dreamcache.dreamcache_core.unet import DEFAULT_STAGES, STAGES, UNetStructure, select_layers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support.structures import SD15


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


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("0.middle_block.1", (2, 1280, 3)),
        ("0.middle_block.1", (2, 640, 3, 5)),
        ("0.subject", (1, 24, 40)),
        ("0.caching_input.latent", (2, 3, 24, 40)),
        ("0.caching_input.latent", (1, 4, 24, 40)),
        ("0.caching_input.noise", (2, 4, 24, 24)),
        ("0.caching_input.context", (77, 768)),
    ],
)
def test_a_file_with_a_tensor_of_another_shape_is_refused(
    batch: ReferenceBatch, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    path, latents = tmp_path / "cache.safetensors", torch.zeros(2, 4, 24, 40)
    given = CachingInput(latents, latents, torch.zeros(1, 77, 768), torch.zeros(1, 768))
    whole = replace(batch, subject=torch.ones(2, 24, 40), caching_inputs=(given,))
    save_references(path, ReferenceCache((whole,)))
    assert load_references(path).references.batches[0].caching_inputs
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}
    for changed in {name, name.replace("latent", "noise")}:
        assert changed in tensors
        tensors[changed] = torch.zeros(shape)
    save_file(tensors, path, metadata)
    check_damaged(path)


@pytest.mark.parametrize("thumbnails", [[(513, 8)], [(8, 8)] * 1001], ids=["large", "many"])
def test_thumbnails_are_few_and_small(cache: ReferenceCache, tmp_path: Path, thumbnails: list[tuple[int, int]]) -> None:
    path = tmp_path / "cache.safetensors"
    save_references(path, cache)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}
    header = json.loads(metadata["header"])
    jpegs = []
    for size in thumbnails:
        content = io.BytesIO()
        Image.new("RGB", size).save(content, "JPEG")
        jpegs.append(base64.b64encode(content.getvalue()).decode())
    header["caches"][0]["source"] = {"base_hash": "", "patched": False, "version": "1", "thumbnails": jpegs}
    save_file(tensors, path, {**metadata, "header": json.dumps(header)})
    check_damaged(path)


def check_damaged(path: Path) -> None:
    """The header is refused in the same sentence when it is described and when it is loaded."""
    with pytest.raises(DreamCacheError) as raised:
        load_references(path)
    assert str(raised.value) == f"{path.name} has a damaged header: download it again."
    assert describe_references(path).problem == str(raised.value)


def test_a_header_too_large_to_read_is_neither_written_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with pytest.raises(DreamCacheError, match=r"large\.safetensors would have a header of more than 8 MB: save fewer"):
        write_file(path, "reference_cache", 2, {"prompt": "x" * 8_100_000}, {"tensor": torch.zeros(1)})
    assert not path.exists()
    header = b"{}" + b" " * 16_000_000
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DreamCacheError, match="is damaged or incomplete"):
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


@pytest.mark.parametrize(("precision", "what"), [("float16", "0.middle_block.1"), ("float8", "0.subject")])
def test_nan_in_a_file_is_named_when_it_is_loaded(
    batch: ReferenceBatch, tmp_path: Path, precision: Precision, what: str
) -> None:
    subject = torch.ones(2, 24, 40)
    save_references(tmp_path / "cache.safetensors", ReferenceCache((replace(batch, subject=subject),)), precision)
    with safe_open(tmp_path / "cache.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    tensors[what].view(-1)[7] = float("nan")
    save_file(tensors, tmp_path / "cache.safetensors", metadata)
    with pytest.raises(DreamCacheError, match=f"{re.escape(what)} of cache.safetensors contains NaN or infinity"):
        load_references(tmp_path / "cache.safetensors")
