"""Damaged files, and files that mean harm: every reader reads them or says in a sentence that it can't.

`pytest tests/core/test_damaged_files.py --damaged-files 5000` tries that many for each reader.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import describe_adapter, load_adapter, save_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.adapter.provenance import Provenance
from dreamcache.dreamcache_core.evaluation.dino import VisionTransformer, load_vision_transformer
from dreamcache.dreamcache_core.io import file_state
from dreamcache.dreamcache_core.io.base_checkpoint import checkpoint_family
from dreamcache.dreamcache_core.io.disk_cache import DiskCache
from dreamcache.dreamcache_core.io.pickle_file import open_pickle
from dreamcache.dreamcache_core.reference.cache import CachingInput, ReferenceBatch, ReferenceCache, Source
from dreamcache.dreamcache_core.reference.file import describe_references, load_references, save_references
from dreamcache.dreamcache_core.reference.thumbnails import make_thumbnail
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, save_checkpoint
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.triplet_files import find_triplets
from dreamcache.dreamcache_core.training.validation import Validation
from dreamcache.dreamcache_core.unet import TransformerLayer
from PIL import Image
from safetensors.torch import save_file
from support.damage import (
    RunsCode,
    attack,
    damage_bytes,
    damage_json,
    damage_tensor_file,
    damage_zip,
    dump_json,
    odd_pickle,
    verdict,
)

MEMORY = 2**30

LAYERS = (TransformerLayer("middle_block.1", 64, 1), TransformerLayer("output_blocks.4.1", 64, 1))

Damage = Callable[[bytes, Random], bytes]


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if memory grows by more than MEMORY. A file that was just written isn't waited for."""
    monkeypatch.setattr(file_state, "_SETTLED_AFTER", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--damaged-files")


def check_same_verdict(described: str | None, loaded: str | None, *of_values: str) -> None:
    """A description is that of the header, and only the values can make it differ from loading: with NaN, or with what
    `of_values` says.
    """
    of_values = ("contains NaN or infinity", *of_values)
    assert described == loaded or (described is None and loaded and any(words in loaded for words in of_values))


def an_adapter() -> Adapter:
    return Adapter(LAYERS, "SD1.x", provenance=(Provenance("0" * 64, 10, 4, 30),)).half()


def authors_tensors() -> dict[str, torch.Tensor]:
    names = {"norm_mem": "norm2_mem", "to_q": "attn_mem.to_q", "to_k": "attn_mem.to_k", "to_v": "attn_mem.to_v"}
    names |= {"to_out": "attn_mem.to_out.0", "linear_cat": "linear_cat"}
    tensors = {}
    for name, tensor in an_adapter().state_dict().items():
        layer, part, parameter = name.rsplit(".", 2)
        tensors[f"diffusion_model.{layer}.transformer_blocks.0.{names[part]}.{parameter}"] = tensor
    return tensors


@pytest.mark.parametrize("whose", ["ours", "the authors'"])
def test_an_adapter_is_described_as_it_loads(whose: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    if whose == "ours":
        save_adapter(path, an_adapter())
    else:
        save_file(authors_tensors(), path)
    sound = path.read_bytes()
    assert describe_adapter(path).problem is None

    def read() -> None:
        check_same_verdict(describe_adapter(path).problem, verdict(lambda: load_adapter(path)))

    attack(count, f"adapter, {whose}", path, lambda random: damage_tensor_file(sound, random), read)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_adapter_is_described_as_it_loads_and_runs_no_code(zipped: bool, count: int, tmp_path: Path) -> None:
    path, trap = tmp_path / "adapter.pt", tmp_path / "trap"
    torch.save(authors_tensors(), path, _use_new_zipfile_serialization=zipped)
    sound = path.read_bytes()
    assert verdict(lambda: load_adapter(path)) is None

    def damage(random: Random) -> bytes:
        if random.randrange(2):
            return odd_pickle(authors_tensors(), trap, random)
        return damage_zip(sound, random) if zipped else damage_bytes(sound, random)

    def read() -> None:
        problem = verdict(lambda: load_adapter(path))
        # A zip has a checksum of its values.
        check_same_verdict(describe_adapter(path).problem, problem, *["is damaged or incomplete"] * zipped)
        if problem is None:
            adapter = load_adapter(path).adapter
            assert all(tensor.is_floating_point() for tensor in adapter.state_dict().values())
        assert not trap.exists()

    attack(count, f"pickled adapter, {zipped}", path, damage, read)


def test_only_a_pickle_that_names_code_is_called_dangerous(tmp_path: Path) -> None:
    path, code = tmp_path / "adapter.pt", RunsCode(tmp_path / "trap")
    dangerous, damaged = "such a file can run any program", "is damaged or incomplete"

    def check(content: Any, words: str, zipped: bool = True) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
        problem = describe_adapter(path).problem
        assert problem and words in problem
        assert verdict(lambda: load_adapter(path)) == problem
        assert not code.path.exists()

    for zipped in (True, False):
        check(code, dangerous, zipped)
        check({**authors_tensors(), "epoch": code}, dangerous, zipped)
        check({**authors_tensors(), "epoch": 3}, "contains other things than tensors", zipped)
        # It claims more numbers than it has.
        check({"weight": torch.zeros(1).expand(1000, 1000)}, damaged, zipped)
        torch.save(authors_tensors(), path, _use_new_zipfile_serialization=zipped)
        check(path.read_bytes()[:-100_000], damaged)
        check(path.read_bytes()[:100], damaged)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        check(pickle.dumps(code, protocol), dangerous)
    for nonsense in (b"", b"PK", b"PK\3\4", b"This file was moved.", b"copy this\nor that\n", pickle.dumps(3)[:-1]):
        check(nonsense, damaged)
    # Python would make room for as many places.
    check(b"\x80\2Nr\xff\xff\xff\xff.", damaged)


def test_pickled_tensors_are_those_that_pytorch_reads(tmp_path: Path) -> None:
    path, network = tmp_path / "weights.pt", torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    both = torch.randn(4, 6)
    tensors = {"part": both[1:, 2:], "turned": both.T, "empty": both[:0], "number": torch.tensor(3)}
    tensors |= {"parameter": torch.nn.Parameter(both), "bfloat16": both.bfloat16()}
    for content in (network.state_dict(), tensors):
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with open_pickle(path) as file:
                read = file.read()
            expected = torch.load(path, weights_only=True)
            assert read.keys() == expected.keys()
            for name, tensor in read.items():
                assert tensor.dtype == expected[name].dtype
                assert torch.equal(tensor, expected[name])


def references(version: int, path: Path) -> bytes:
    """The content of a file of references."""
    picture = make_thumbnail(Image.new("RGB", (90, 30), "red"))
    inputs = CachingInput(torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 6, 8), torch.zeros(1, 7, 5), torch.zeros(1, 3))
    batch = ReferenceBatch(
        {layer.name: torch.randn(2, layer.channels, 3, 4) for layer in LAYERS},
        "SD1.x",
        LAYERS,
        latent_size=(6, 8),
        timestep=1,
        prompt="a cup",
        source=Source("0" * 64, patched=False, thumbnails=(picture, picture)),
        subject=torch.ones(2, 6, 8),
        caching_inputs=(inputs,),
    )
    if version == 1:
        header: dict[str, Any] = {"base_model": "SD1.x", "layers": [layer.to_json() for layer in LAYERS]}
        header |= {"latent_size": [6, 8], "timestep": 1, "prompt": ""}
        metadata = {"format": "dreamcache.reference_cache", "version": "1", "header": json.dumps(header)}
        save_file(batch.features, path, metadata)
    else:
        save_references(path, ReferenceCache((batch, batch)), "float8")
    return path.read_bytes()


@pytest.mark.parametrize("version", [1, 2])
def test_a_reference_is_described_as_it_loads_and_then_computes(version: int, count: int, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    sound = references(version, path)
    assert describe_references(path).problem is None

    def read() -> None:
        problem = verdict(lambda: load_references(path))
        check_same_verdict(describe_references(path).problem, problem)
        if problem is None:
            file = load_references(path)
            assert describe_references(path).description == file.description
            assert len(file.references.images) == len(file.references)
            for layer in file.references.layers:
                assert file.references.tokens(layer.name).shape[-1] == layer.channels
                file.references.bias(layer.name)

    attack(count, f"reference {version}", path, lambda random: damage_tensor_file(sound, random), read)


def test_a_damaged_dino_is_refused_or_embeds(count: int, tmp_path: Path) -> None:
    path, image = tmp_path / "dino.safetensors", torch.zeros(1, 32, 32, 3)
    # Its own names are read like those of its authors.
    save_file(VisionTransformer(64, 1, 64, 16, 32).state_dict(), path)
    sound = path.read_bytes()
    assert load_vision_transformer(path)

    def read() -> None:
        def load() -> None:
            network = load_vision_transformer(path)
            assert network is None or network(network.preprocess(image)).shape == (1, network.class_token.shape[2])

        problem = verdict(load)
        assert problem is None or path.name in problem

    attack(count, "DINO", path, lambda random: damage_tensor_file(sound, random), read)


def test_the_family_of_a_damaged_checkpoint_is_a_text_or_unknown(count: int, tmp_path: Path) -> None:
    path, unet = tmp_path / "base.safetensors", "model.diffusion_model."
    reads_prompt = f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({f"{unet}input_blocks.0.0.weight": torch.zeros(320, 1), reads_prompt: torch.zeros(2, 768)}, path)
    sound = path.read_bytes()
    assert checkpoint_family(path) == "SD1.x"

    def read() -> None:
        assert isinstance(checkpoint_family(path), str | None)

    attack(count, "base checkpoint", path, lambda random: damage_tensor_file(sound, random), read)


def test_a_damaged_checkpoint_is_noticed_wherever_the_damage_is(count: int, tmp_path: Path) -> None:
    """Or it did no harm, as damage to a date does none."""
    weight, momentum = torch.randn(50, 50), torch.randn(2500)
    state = {"step": 4, "adapter": {"weight": weight}, "optimizer": {"state": {0: momentum}}}
    save_checkpoint(tmp_path, {"step": 3})
    path = save_checkpoint(tmp_path, state)
    sound = path.read_bytes()

    def read() -> None:
        read = load_checkpoint(tmp_path)
        assert read
        if read["step"] == 4:
            assert torch.equal(read["adapter"]["weight"], weight)
            assert torch.equal(read["optimizer"]["state"][0], momentum)

    attack(count, "checkpoint", path, lambda random: damage_bytes(sound, random), read)


def test_a_crafted_checkpoint_gives_way_to_the_one_before(count: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 3})
    tensors, trap = {"weight": torch.randn(50, 50)}, tmp_path / "trap"
    path = save_checkpoint(tmp_path, {"step": 4, **tensors})
    sound = path.read_bytes()

    def damage(random: Random) -> bytes:
        return damage_zip(sound, random) if random.randrange(2) else odd_pickle(tensors, trap, random)

    def read() -> None:
        state = load_checkpoint(tmp_path)
        assert state and state["step"] in (3, 4)
        assert not trap.exists()

    attack(count, "crafted checkpoint", path, damage, read)


@pytest.mark.parametrize("version", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_damaged_tar_gives_what_lies_inside_of_it_or_a_sentence(version: int, count: int, tmp_path: Path) -> None:
    file, longest = io.BytesIO(), 20 if version == tarfile.USTAR_FORMAT else 60
    with tarfile.open(fileobj=file, mode="w", format=version) as tar:
        for number in range(3):
            for name in ("generation.png", "caption.txt", "mask.png"):
                member = tarfile.TarInfo(f"{number}é{'x' * longest * number}_{name}")
                member.size, member.pax_headers = 700, {"comment": "long" * 30}
                tar.addfile(member, io.BytesIO(bytes(700)))
    sound, path = file.getvalue(), tmp_path / "00000.tar"

    def damage(random: Random) -> bytes:
        damaged = bytearray(damage_bytes(sound, random) if random.randrange(3) else sound)
        # With the right checksum, so that the header is believed.
        for start in range(0, len(damaged) - 511, 512):
            if damaged[start + 257 : start + 262] == b"ustar":
                if random.randrange(4) == 0:
                    place, length = random.choice(((124, 12), (156, 1), (0, 10), (345, 20), (257, 8)))
                    odd = (b"\x80", b"\xff", b"7", b"-1", b"0", b"\0", b"L", b"x", b"g", b"S", b"5")
                    damaged[start + place : start + place + length] = (random.choice(odd) * length)[:length]
                damaged[start + 148 : start + 156] = b" " * 8
                damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])
        return bytes(damaged)

    def read() -> None:
        found, problems = find_triplets(tmp_path)
        assert all(isinstance(problem, str) for problem in problems)
        for triplet in found:
            for place in (triplet.picture, triplet.caption, triplet.mask):
                assert place and len(place.read()) == place.size

    path.write_bytes(sound)
    assert [len(part) for part in find_triplets(tmp_path)] == [3, 0]
    attack(count, f"tar {version}", path, damage, read)


def test_a_tar_that_leads_its_reader_in_a_circle_ends(tmp_path: Path) -> None:
    """Python's own reader follows a size below 0 back to the same header, for ever."""
    member = tarfile.TarInfo("a_caption.txt")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "00000.tar").write_bytes(bytes(header) + bytes(1024))
    found, (problem, *_) = find_triplets(tmp_path)
    assert not found
    assert "00000.tar is damaged or not an uncompressed tar" in problem


def test_damaged_state_of_a_training_does_not_end_it(count: int, tmp_path: Path) -> None:
    settings: dict[str, str | int] = {"model": "0" * 12, "adapter": "untrained", "batch": 4, "seed": 3}
    save_checkpoint(tmp_path, {"step": 3})
    begun_with, losses = tmp_path / "begun_with.json", tmp_path / "losses.txt"

    def damage(random: Random) -> bytes:
        if random.randrange(2):
            return damage_bytes(json.dumps(settings, indent=2).encode(), random)
        return dump_json(damage_json(settings, random), random).encode(errors="surrogatepass")

    def read() -> None:
        problem = verdict(lambda: TrainingFolder(tmp_path).begin(settings))
        assert problem is None or "was started with" in problem

    attack(count, "settings", begun_with, damage, read)

    def read_losses() -> None:
        before = len(TrainingFolder(tmp_path).losses())
        assert len(TrainingFolder(tmp_path).resume_losses(3)) == 3
        assert len(TrainingFolder(tmp_path).losses()) == 3 and before >= 0

    attack(count, "losses", losses, lambda random: damage_bytes(b"0.5\n0.25\n0.125\n", random), read_losses)

    validation, lines = Validation(2, 0.5, 0.75, 1.0, 0.01), tmp_path / "validations.jsonl"

    def damage_line(random: Random) -> bytes:
        line = dump_json(damage_json(validation.to_json(), random), random)
        return damage_bytes(f"{line}\n".encode(errors="surrogatepass") * 2, random)

    def read_validations() -> None:
        kept = TrainingFolder(tmp_path).validations(3)
        assert all(isinstance(each.gap, float) and each.step <= 3 for each in kept)
        TrainingFolder(tmp_path).keep_validations(kept)
        assert TrainingFolder(tmp_path).validations() == kept

    attack(count, "validations", lines, damage_line, read_validations)


def test_a_damaged_encoding_is_made_again(count: int, tmp_path: Path) -> None:
    cache, made = DiskCache(tmp_path), torch.ones(3)
    cache.get(["key"], [(3,)], lambda numbers: [made])
    (path,) = tmp_path.rglob("*.safetensors")
    sound = path.read_bytes()

    def read() -> None:
        (tensor,) = cache.get(["key"], [(3,)], lambda numbers: [made])
        assert tensor.shape == made.shape

    attack(count, "encoding", path, lambda random: damage_tensor_file(sound, random), read)
