"""Triplets on disk: what is saved is loaded, what is damaged is named, and random choices can be repeated."""

from __future__ import annotations

import io
import logging
import multiprocessing
import pickle
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.training.triplet_files import save_triplet, write_tar
from dreamcache.dreamcache_core.training.triplets import Triplet, epoch_order, open_triplets
from PIL import Image, ImageDraw

SIZE = (80, 64)
BOX = (25, 20, 45, 40)
"""Of the subject: a square, left half red, right half green, within the middle 64 pixels."""
RED, GREEN = torch.tensor([200, 20, 20]) / 255, torch.tensor([20, 160, 20]) / 255


def picture(number: int) -> Image.Image:
    """A subject on a background that tells its number."""
    image = Image.new("RGB", SIZE, (10 * number, 0, 90))
    left, top, right, bottom = BOX
    ImageDraw.Draw(image).rectangle((left, top, (left + right) // 2 - 1, bottom - 1), fill=(200, 20, 20))
    ImageDraw.Draw(image).rectangle(((left + right) // 2, top, right - 1, bottom - 1), fill=(20, 160, 20))
    return image


def mask() -> Image.Image:
    image = Image.new("L", SIZE)
    left, top, right, bottom = BOX
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return image


def save(folder: Path, number: int) -> Path:
    return save_triplet(folder, {"generation": picture(number), "mask": mask()}, f"a flag, 旗 № {number}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five triplets."""
    for number in range(1, 6):
        save(tmp_path / "triplets", number)
    return tmp_path / "triplets"


def file(folder: Path, number: int, part: str) -> Path:
    return folder / "00000" / f"{number:08}_{part}"


def same(one: Triplet, other: Triplet) -> bool:
    pictures = torch.equal(one.target, other.target) and torch.equal(one.reference, other.reference)
    return pictures and (one.prompt, one.name) == (other.prompt, other.name)


def test_what_is_saved_is_loaded(folder: Path) -> None:
    triplets = open_triplets(folder)
    assert triplets.names == tuple(f"00000/{number:08}" for number in range(1, 6))
    assert triplets.problems == ()
    for index, name in enumerate(triplets.names):
        triplet = triplets.load(index, resolution=64, seed=0, epoch=1)
        assert triplet.name == name
        assert triplet.prompt == f"a flag, 旗 № {index + 1}"
        # The middle, pixel by pixel.
        assert torch.equal(triplet.target, to_tensor(picture(index + 1).crop((8, 0, 72, 64))))
        assert triplet.reference.shape == (64, 64, 3)
    assert triplets.load(0, resolution=32, seed=0, epoch=0).target.shape == (32, 32, 3)


def test_a_plain_triplet_has_its_prompt_and_its_subject_as_encode_reference_cuts_it_out(folder: Path) -> None:
    plain = open_triplets(folder).plain(2, resolution=100)
    assert plain.prompt == "a flag, 旗 № 3"
    expected = torch.ones(100, 100, 3)
    # With a margin of a tenth.
    expected[10:90, 10:50] = RED
    expected[10:90, 50:90] = GREEN
    assert (plain.reference - expected).abs().mean() < 0.02


def test_a_tar_is_read_as_the_folder_it_was(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "00000.tar", "w") as tar:
        tar.add(folder / "00000", arcname=".")
    from_folder, from_tar = open_triplets(folder), open_triplets(shards)
    assert from_tar.names == from_folder.names
    assert all(same(from_tar.load(index, 64, 3, 4), from_folder.load(index, 64, 3, 4)) for index in range(5))
    # New samples go on after those that were packed.
    assert save(shards, 6).name == "00001000_generation.png"
    assert len(open_triplets(shards)) == 6

    shard = shards / "00000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    cut = open_triplets(shards)
    assert 1 < len(cut) < 6
    assert any("00000.tar is damaged or not an uncompressed tar" in problem for problem in cut.problems)


LAYOUTS = {
    "folders in folders": "a/b c/{number}_{kind}",
    "a folder for each triplet": "part/{number}/{kind}",
    "a folder for each kind": "{kind}s/part/{number}_{kind}",
    "a folder for each kind in each part": "part/{kind}/{number}_{kind}",
    "folders of any name": "{word}/{number}_{kind}",
    "dots": "part/{number}.{kind}",
}
WORDS = {"generation": "images", "caption": "text", "mask": "segmentation"}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("in_tars", [False, True])
def test_triplets_are_found_in_any_folders(folder: Path, tmp_path: Path, layout: str, in_tars: bool) -> None:
    other = tmp_path / "other"
    for path in folder.rglob("*_*.*"):
        number, kind = path.stem.split("_")
        moved = other / (layout.format(number=number, kind=kind, word=WORDS[kind]) + path.suffix.upper())
        moved.parent.mkdir(parents=True, exist_ok=True)
        moved.write_bytes(path.read_bytes())
    if in_tars:
        for top in list(other.iterdir()):
            with tarfile.open(f"{top}.tar", "w") as tar:
                tar.add(top, arcname=".")
            shutil.rmtree(top)
    triplets = open_triplets(other).check()
    assert triplets.problems == ()
    assert [triplets.plain(index, 64).prompt for index in range(5)] == [
        f"a flag, 旗 № {index}" for index in range(1, 6)
    ]
    assert [name.rpartition("/")[2] for name in triplets.names] == [f"{number:08}" for number in range(1, 6)]


def test_files_of_one_kind_that_fit_nothing_keep_their_names(folder: Path) -> None:
    (folder / "masks").mkdir()
    file(folder, 3, "mask.png").rename(folder / "masks" / "3_mask.png")
    mask().save(folder / "masks" / "00000004_mask.png")
    triplets = open_triplets(folder)
    assert triplets.problems == (
        "00000/00000003: its mask is missing.",
        "masks/00000004: its picture is missing.",
        "masks/3: its picture is missing.",
    )
    assert len(triplets) == 4


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_a_picture_that_is_a_hard_link_in_a_tar_is_read(tmp_path: Path) -> None:
    with write_tar(tmp_path / "a.tar") as add:
        one, other = (png(picture(number)) for number in (1, 2))
        for name, content in (("1_generation.png", one), ("1_reference.png", other), ("1_caption.txt", b"one")):
            add(name, content)
        for name, content in (("2_generation.png", other), ("2_reference.png", one), ("2_caption.txt", b"two")):
            add(name, content)
    assert (tmp_path / "a.tar").stat().st_size < 2 * len(one + other) + 10240
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [member.islnk() for member in tar].count(True) == 2
        tar.extractall(tmp_path / "b", filter="data")
    triplets = open_triplets(tmp_path).check()
    assert (triplets.names, triplets.problems) == (("a/1", "a/2", "b/1", "b/2"), ())
    for index in range(4):
        triplet = triplets.plain(index, resolution=80)
        target, reference = (to_tensor(picture(number)) for number in (1 + index % 2, 2 - index % 2))
        assert torch.equal(triplet.target[40, 40], target[32, 40])
        # All of the picture, with white above and below.
        assert torch.equal(triplet.reference[8:72], reference)


@pytest.mark.parametrize("name", ["part.tar.gz", "part.TGZ", "part.zip", "part.tar.zst"])
def test_compressed_archives_are_named(folder: Path, name: str) -> None:
    (folder / name).touch()
    assert open_triplets(folder).problems == (f"{folder / name} is compressed, and is not read: unpack it.",)


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def blacken(path: Path) -> None:
    Image.new("L", SIZE).save(path)


def write_latin_1(path: Path) -> None:
    path.write_bytes("ein Löwe".encode("latin-1"))


def write_spaces(path: Path) -> None:
    path.write_bytes(b" \n")


def add_another(path: Path) -> None:
    picture(1).save(path.with_suffix(".jpg"))


@pytest.mark.parametrize(
    ("part", "damage", "problem"),
    [
        ("generation.png", delete, "its picture is missing"),
        ("caption.txt", delete, "its caption is missing"),
        ("mask.png", delete, "its mask is missing"),
        ("generation.png", empty, "its picture is empty"),
        ("caption.txt", empty, "its caption is empty"),
        ("mask.png", empty, "its mask is empty"),
        (
            "generation.png",
            add_another,
            "there are several files for its picture: 00000/00000003_generation.jpg and 00000/00000003_generation.png",
        ),
    ],
)
def test_a_file_that_is_not_there_is_named_when_the_folder_is_opened(
    folder: Path, part: str, damage: Callable[[Path], None], problem: str
) -> None:
    damage(file(folder, 3, part))
    triplets = open_triplets(folder)
    assert triplets.problems == (f"00000/00000003: {problem}.",)
    assert len(triplets) == 4
    assert "4 triplets" in triplets.description
    assert triplets.problems[0] in triplets.description


@pytest.mark.parametrize(
    ("part", "damage", "problem"),
    [
        ("generation.png", cut, "its picture cannot be read: it is damaged"),
        ("mask.png", cut, "its mask cannot be read: it is damaged"),
        ("mask.png", blacken, "its mask is black in the square at its centre"),
        ("caption.txt", write_latin_1, "its caption cannot be read as UTF-8 text: save it in UTF-8"),
        ("caption.txt", write_spaces, "its caption is empty"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_trained_on(
    folder: Path, part: str, damage: Callable[[Path], None], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(file(folder, 3, part))
    said = f"00000/00000003: {problem}."

    checked = open_triplets(folder).check()
    assert checked.problems == (said,)
    assert checked.names == tuple(f"00000/0000000{number}" for number in (1, 2, 4, 5))

    # Met in training it is left out too, and said once.
    triplets = open_triplets(folder)
    with caplog.at_level(logging.WARNING):
        loaded = [triplets.load(index, 64, 0, epoch).name[-1] for epoch in range(2) for index in range(5)]
    assert loaded == list("1244512445")
    assert triplets.problems == (said,)
    assert [record.getMessage() for record in caplog.records] == [f"DreamCache trains without a triplet: {said}"]


def test_a_folder_without_any_good_sample_is_refused_in_one_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DreamCacheError, match=r"nowhere is not a folder"):
        open_triplets(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DreamCacheError, match=r"There are no triplets in .*: make some with DreamCache Save Triplet"):
        open_triplets(tmp_path / "empty")
    for number in range(1, 6):
        cut(file(folder, number, "generation.png"))
    with pytest.raises(
        DreamCacheError, match=r"None of the 5 samples .* the first problem: 00000/00000001: its picture"
    ):
        open_triplets(folder).check()
    with pytest.raises(DreamCacheError, match=r"No triplet of .* 00000/0000000\d: its picture"):
        open_triplets(folder).load(2, 64, 0, 0)


def test_own_pictures_of_other_formats_and_names(tmp_path: Path) -> None:
    (tmp_path / "Katzen").mkdir()
    picture(1).save(tmp_path / "Katzen" / "Mieze_größer_generation.JPG", quality=100)
    mask().save(tmp_path / "Katzen" / "Mieze_größer_mask.webp", lossless=True)
    (tmp_path / "Katzen" / "Mieze_größer_caption.txt").write_text("\ufeffeine Katze\n", encoding="utf-8")
    (tmp_path / ".hidden_caption.txt").touch()
    (tmp_path / "notes.txt").touch()
    triplets = open_triplets(tmp_path)
    assert triplets.names == ("Katzen/Mieze_größer",)
    assert triplets.problems == ()
    assert triplets.load(0, 64, 0, 0).prompt == "eine Katze"


def test_a_reference_of_its_own_stands_in_for_the_cut_out(folder: Path) -> None:
    reference = Image.new("RGBA", (20, 40), (0, 0, 255, 255))
    reference.paste((0, 0, 0, 0), (0, 0, 20, 20))
    reference.save(file(folder, 1, "reference.png"))
    file(folder, 1, "mask.png").unlink()
    triplets = open_triplets(folder)
    assert len(triplets) == 5
    for epoch in range(5):
        shown = triplets.load(0, 40, 0, epoch).reference
        # As high as the square, in its middle, unchanged, on white where it is transparent or absent.
        assert torch.equal(shown[20:, 10:30], torch.tensor([0.0, 0.0, 1.0]).expand(20, 20, 3))
        shown[20:, 10:30] = 1
        assert torch.equal(shown, torch.ones(40, 40, 3))


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    triplets = open_triplets(folder)
    first = triplets.load(2, 64, seed=7, epoch=3)
    triplets.load(4, 64, seed=7, epoch=3)
    assert same(triplets.load(2, 64, seed=7, epoch=3), first)
    # In another process too, to which a DataLoader pickles them.
    assert same(pickle.loads(pickle.dumps(triplets)).load(2, 64, seed=7, epoch=3), first)
    for seed, epoch, index in ((8, 3, 2), (7, 4, 2), (7, 3, 1)):
        assert not torch.equal(triplets.load(index, 64, seed, epoch).reference, first.reference)


def test_references_and_prompts_are_varied_as_often_as_the_recipe_says(folder: Path) -> None:
    triplets = open_triplets(folder)
    resolution, draws = 60, [(index, epoch) for index in range(5) for epoch in range(200)]
    flipped, recoloured, erased, dropped, sizes, corners = 0, 0, 0, 0, [], set()
    for index, epoch in draws:
        triplet = triplets.load(index, resolution, 0, epoch)
        dropped += triplet.prompt == ""
        inked = (triplet.reference < 0.9).any(dim=-1)
        rows, columns = inked.any(dim=1).nonzero().flatten(), inked.any(dim=0).nonzero().flatten()
        height, width = (int(where[-1] - where[0]) + 1 for where in (rows, columns))
        # The subject is a square: what is none has lost a part.
        if height != width or int(inked.sum()) != height * width:
            erased += 1
            continue
        sizes.append(height)
        corners.add((int(rows[0]), int(columns[0])))
        colours = [triplet.reference[rows[3], column] for column in (columns[3], columns[-4])]
        reddest = max(colours, key=lambda colour: float(colour[0] - colour[1]))
        flipped += reddest is colours[1]
        recoloured += not torch.allclose(reddest, RED, atol=0.01)
    whole = len(sizes)
    assert min(sizes) >= 0.7 * resolution - 1
    assert max(sizes) > 0.95 * resolution
    assert len(corners) > 100
    assert dropped / len(draws) == pytest.approx(0.07, abs=0.025)
    # A little less than 0.4, for some rectangles hit the paper alone.
    assert erased / len(draws) == pytest.approx(0.38, abs=0.04)
    assert flipped / whole == pytest.approx(0.5, abs=0.06)
    assert recoloured / whole == pytest.approx(0.1, abs=0.03)


def test_an_epoch_goes_through_all_samples_in_an_order_of_its_own() -> None:
    order = epoch_order(1000, seed=1, epoch=2)
    assert sorted(order) == list(range(1000))
    assert order == epoch_order(1000, seed=1, epoch=2)
    others = [list(range(1000)), epoch_order(1000, seed=1, epoch=3), epoch_order(1000, seed=2, epoch=2)]
    assert order not in others


def test_numbers_go_on_after_the_highest(tmp_path: Path) -> None:
    assert save(tmp_path, 1) == file(tmp_path, 1, "generation.png")
    picture(1).save(tmp_path / "0041_generation.png")
    assert save(tmp_path, 1) == file(tmp_path, 42, "generation.png")
    for part in ("generation.png", "caption.txt", "mask.png"):
        file(tmp_path, 1, part).unlink()
    assert save(tmp_path, 1) == file(tmp_path, 43, "generation.png")
    # A folder for each thousand.
    file(tmp_path, 999, "mask.png").touch()
    assert save(tmp_path, 1) == tmp_path / "00001" / "00001000_generation.png"


def save_many(folder: Path, writer: int, count: int, start: Barrier) -> None:
    start.wait()
    for number in range(count):
        save_triplet(folder, {"generation": picture(1), "mask": mask()}, f"{writer} {number}")


def test_processes_that_write_into_one_folder_lose_nothing_though_one_is_killed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4)
    # The last would write until the disk is full, and is in the midst of it when it is killed.
    counts = (100, 100, 10**9)
    writers = [fork.Process(target=save_many, args=(tmp_path, *one, start)) for one in enumerate(counts)]
    for writer in writers:
        writer.start()
    start.wait()
    while not list(tmp_path.glob("00000/*_generation.png")):
        time.sleep(0.01)
    writers[2].kill()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, -signal.SIGKILL]

    triplets = open_triplets(tmp_path)
    assert len(triplets.check()) == len(triplets)
    captions = [path.read_text() for path in tmp_path.rglob("*_caption.txt")]
    whole = [caption for caption in captions if caption]
    assert {f"{writer} {number}" for writer in range(2) for number in range(100)} <= set(whole)
    assert len(whole) == len(set(whole))
