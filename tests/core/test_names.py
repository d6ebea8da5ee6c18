"""Names of files as people have them: in any case, Unicode form and type; and paths as people type them."""

from __future__ import annotations

import tarfile
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluation.subjects import load_masked_image, open_subjects
from dreamcache.dreamcache_core.io.names import path_option, typed_path
from dreamcache.dreamcache_core.training.triplets import open_triplets
from PIL import Image

NFC = unicodedata.normalize("NFC", "Löwe")
NFD = unicodedata.normalize("NFD", "Löwe")


def write(path: Path) -> None:
    if path.suffix.lower() == ".txt":
        path.write_text("a cup", encoding="utf-8")
    else:
        Image.new("RGB", (64, 64), "white").save(path, {".heic": "PNG"}.get(path.suffix.lower()))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(DreamCacheError) as raised:
        act()
    return str(raised.value)


@pytest.mark.parametrize(
    "names",
    [
        ("a_generation.png", "a_caption.TXT", "a_Mask.PNG"),
        ("A_GENERATION.JPEG", "a_caption.txt", "A_mask.Bmp"),
        (f"{NFC}_generation.png", f"{NFD}_caption.txt", f"{NFC.upper()}_mask.tif"),
        ("a_generation.avif", "a_caption.txt", "a_mask.gif"),
    ],
)
def test_a_sample_is_one_whatever_the_case_the_unicode_form_and_the_type(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        write(tmp_path / name)
    triplets = open_triplets(tmp_path).check()
    assert (len(triplets), triplets.problems) == (1, ())
    assert triplets.names == (names[0].rpartition("_")[0],)
    with tarfile.open(tmp_path / "packed.TAR", "w") as tar:
        for name in names:
            tar.add(tmp_path / name, name)
    assert len(open_triplets(tmp_path).check()) == 2


def test_a_file_of_a_type_that_is_not_read_is_named_with_those_that_are(tmp_path: Path) -> None:
    for name in ("a_generation.heic", "a_caption.txt", "a_mask.png", "b_generation.png", "b_caption.md", "b_mask.png"):
        write(tmp_path / name) if not name.endswith(".md") else (tmp_path / name).touch()
    assert refusal(lambda: open_triplets(tmp_path)).startswith("None of the 2 samples")
    # A file that only happens to have such a name is none of our business.
    for name in ("c_generation.png", "c_caption.txt", "c_mask.png", "c_generation.json", "notes_on_mask.pdf"):
        (tmp_path / name).touch() if name.endswith(("json", "pdf")) else write(tmp_path / name)
    assert open_triplets(tmp_path).check().problems == (
        "a: its picture is missing; a_generation.heic must be .png, .jpg, .jpeg, .webp, .bmp, .gif, .tif, .tiff or "
        ".avif.",
        "b: its caption is missing; b_caption.md must be .txt.",
    )


def test_samples_whose_names_differ_only_in_case_stay_two(tmp_path: Path) -> None:
    for name in ("aB", "Ab"):
        for part in ("generation.png", "caption.txt", "mask.png"):
            write(tmp_path / f"{name}_{part}")
    (tmp_path / "Ab_caption.txt").write_text("a dog")
    triplets = open_triplets(tmp_path).check()
    assert triplets.names == ("Ab", "aB")
    assert [triplets.plain(index, 64).prompt for index in range(2)] == ["a dog", "a cup"]
    for name in ("x_generation.png", "X_generation.png", "x_caption.txt"):
        write(tmp_path / name)
    (problem,) = open_triplets(tmp_path).problems
    assert problem == "x: its mask is missing." or problem == "X: its mask is missing."


def test_evaluation_finds_its_files_in_any_case_and_takes_no_mask_for_a_reference(tmp_path: Path) -> None:
    folder = tmp_path / "dog2"
    folder.mkdir()
    for name in (f"{NFC}.jpg", f"{NFD}_Mask.TIF", "b.BMP", "b_MASK.gif", "c.png"):
        write(folder / name)
    (folder / "Class.TXT").write_text("puppy")
    (tmp_path / "PROMPTS.txt").write_bytes(b"\xff\xfea\x00 \x00{\x00}\x00")  # UTF-16, as Windows' Notepad writes it
    (dog,) = open_subjects(tmp_path)
    assert dog.class_name == "puppy"
    assert dog.prompts == ("a puppy",)
    assert {path.name for path in dog.references} == {f"{NFC}.jpg", "b.BMP", "c.png"}
    assert [load_masked_image(folder / name).mask is None for name in (f"{NFC}.jpg", "b.BMP", "c.png")] == [
        False,
        False,
        True,
    ]
    write(folder / "b_MASK.png")
    assert "b.BMP has several masks, b_MASK.gif and b_MASK.png: remove all but one." in refusal(
        lambda: load_masked_image(folder / "b.BMP")
    )
    for name in ("B.bmp", "B_mask.png"):
        write(folder / name)
    assert load_masked_image(folder / "B.bmp").mask is not None
    write(folder / "c_mask.heic")
    assert "c_mask.heic is of a type that is not read: save it as .png, .jpg" in refusal(
        lambda: load_masked_image(folder / "c.png")
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("  my cups \n", "my cups"),
        ('"/data/my cups"', "/data/my cups"),
        (" '/data/my cups' ", "/data/my cups"),
        ("file:///data/my%20cups", "/data/my cups"),
        ("FILE://localhost/data/L%C3%B6we%23", "/data/Löwe#"),
        ("James'", "James'"),
        ("~nobody_of_this_name", "~nobody_of_this_name"),
        ("~", str(Path.home())),
        ("", "."),
        ('" "', "."),
    ],
)
def test_a_path_is_what_was_meant_by_what_was_typed(typed: str, meant: str) -> None:
    assert typed_path(typed) == Path(meant)


@pytest.mark.parametrize("text", ["", " ", '""', "file://"])
def test_an_option_that_is_empty_is_not_the_current_folder(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="the path is empty"):
        path_option(text)
    assert path_option(".") == Path()
