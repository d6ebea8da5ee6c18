"""Pictures and masks as people have them: each is read by what it means, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluation.subjects import load_masked_image
from dreamcache.dreamcache_core.io.images import read_image, read_mask, to_image, to_tensor
from dreamcache.dreamcache_core.io.names import picture_types
from dreamcache.dreamcache_core.training.triplets import open_triplets
from PIL import Image

CASES = Path(__file__).resolve().parents[1] / "support" / "cases"
SIZE = (96, 64)
SUBJECT = 0.263
"""The part of the picture that the masks cover."""


def read(path: Path) -> torch.Tensor:
    return to_tensor(read_image(path.read_bytes, path.name))


def mask(path: Path, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return to_tensor(read_mask(path.read_bytes, path.name, size))


def subject(read: torch.Tensor) -> float:
    return float((read > 0.5).float().mean())


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(DreamCacheError) as raised:
        read()
    return str(raised.value)


@pytest.mark.parametrize("name", ["plain.png", "palette.png", "pic.bmp", "cmyk.jpg", "exif6.jpg"])
def test_a_picture_is_the_same_in_every_mode_and_type(name: str) -> None:
    picture = read(CASES / name)
    assert picture.shape == (64, 96, 3)
    tolerance = 0.02 if name.endswith(".jpg") else 0.002
    assert (picture - read(CASES / "plain.png")).abs().mean() < tolerance
    assert torch.allclose(255 * picture.mean((0, 1)), torch.tensor([162.0, 65, 87]), atol=1)


@pytest.mark.parametrize("suffix", picture_types())
def test_every_type_that_is_read_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.open(CASES / "plain.png").save(path)
    assert (read(path) - read(CASES / "plain.png")).abs().mean() < 0.03


def test_sixteen_bits_and_floats_are_scaled(tmp_path: Path) -> None:
    grey = read(CASES / "grey16.png")
    assert (float(grey.min()), float(grey.max())) == pytest.approx((21_588 / 65_535, 53_199 / 65_535), abs=0.002)
    levels = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(64, 96)
    Image.fromarray((65_535 * levels).astype(np.uint16)).save(tmp_path / "16.tif")
    Image.fromarray(levels).save(tmp_path / "float.tif")
    for name in ("16.tif", "float.tif"):
        assert (read(tmp_path / name) - torch.from_numpy(levels)[..., None]).abs().max() < 0.003
        assert subject(mask(tmp_path / name)) == pytest.approx(0.5, abs=0.01)
    Image.fromarray(300 * levels).save(tmp_path / "float.tif")
    assert "float.tif has levels outside black and white, or NaN" in refusal(lambda: read(tmp_path / "float.tif"))
    levels[0, 0] = np.nan
    Image.fromarray(levels).save(tmp_path / "float.tif")
    assert "float.tif has levels outside black and white, or NaN" in refusal(lambda: read(tmp_path / "float.tif"))


@pytest.mark.parametrize("name", ["mask8.png", "mask01.png", "mask_white_alpha.png"])
def test_a_mask_is_its_shape_however_it_is_written(name: str) -> None:
    assert subject(mask(CASES / name)) == pytest.approx(SUBJECT, abs=0.001)


@pytest.mark.parametrize("as_written", ["black with alpha", "grey with alpha", "1 bit", "16 bits of 0 and 1", "opaque"])
def test_more_ways_to_write_a_mask(tmp_path: Path, as_written: str) -> None:
    shape = Image.open(CASES / "mask8.png").convert("L")
    path = tmp_path / "mask.png"
    if as_written == "black with alpha":
        Image.merge("RGBA", [Image.new("L", SIZE)] * 3 + [shape]).save(path)
    elif as_written == "grey with alpha":
        Image.merge("LA", [Image.new("L", SIZE, 90), shape]).save(path)
    elif as_written == "1 bit":
        shape.convert("1").save(path)
    elif as_written == "16 bits of 0 and 1":
        Image.fromarray((np.asarray(shape) > 0).astype(np.uint16)).save(path)
    else:
        Image.merge("LA", [shape, Image.new("L", SIZE, 255)]).save(path)
    assert subject(mask(path)) == pytest.approx(SUBJECT, abs=0.001)


def test_a_mask_may_be_smaller_but_not_of_another_shape() -> None:
    assert subject(mask(CASES / "mask8.png", (48, 32))) == pytest.approx(SUBJECT, abs=0.02)
    assert subject(mask(CASES / "mask8.png", (1000, 667))) == pytest.approx(SUBJECT, abs=0.02)
    assert refusal(lambda: mask(CASES / "mask8.png", (64, 96))) == (
        "mask8.png is 96×64 pixels and its picture 64×96, which is another shape: make the mask of the picture as it "
        "is shown, upright and uncropped."
    )


def test_a_mask_of_a_single_level_has_no_shape(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    assert mask(tmp_path / "white.png").min() == 1


def test_a_picture_too_large_to_read_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (9000, 8000)).save(tmp_path / "large.png")
    assert "large.png has more than 64 million pixels" in refusal(lambda: read(tmp_path / "large.png"))
    Image.new("L", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert "bomb.png has more than 64 million pixels" in refusal(lambda: read(tmp_path / "bomb.png"))


def test_a_picture_of_another_type_is_refused_whatever_its_suffix_is(tmp_path: Path) -> None:
    picture = Image.open(CASES / "plain.png")
    # Pillow starts Ghostscript for the first.
    for kind in ("EPS", "TGA", "PDF"):
        picture.save(tmp_path / "picture.png", kind)
        assert refusal(lambda: read(tmp_path / "picture.png")) == (
            "picture.png cannot be read: it is damaged or of a type that is not read, so save it as .png, .jpg, .jpeg, "
            ".webp, .bmp, .gif, .tif, .tiff or .avif."
        )


# --- Triplets and evaluation read them alike -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask8.png", "mask01.png", "mask_white_alpha.png"])
def test_triplets_and_evaluation_see_the_same_subject(tmp_path: Path, name: str) -> None:
    Image.open(CASES / "pic.bmp").save(tmp_path / "a_generation.bmp")
    (tmp_path / "a_caption.txt").write_text("a shape")
    (tmp_path / "a_mask.png").write_bytes((CASES / name).read_bytes())
    plain = open_triplets(tmp_path).plain(0, 64)
    (tmp_path / "a_generation_mask.png").write_bytes((CASES / name).read_bytes())
    masked = load_masked_image(tmp_path / "a_generation.bmp")
    assert masked.mask is not None
    assert subject(masked.mask) == pytest.approx(SUBJECT, abs=0.001)
    (tmp_path / "a_mask.png").write_bytes((CASES / "mask8.png").read_bytes())
    assert torch.equal(plain.reference, open_triplets(tmp_path).plain(0, 64).reference)
    assert (plain.reference < 0.9).any()


def test_a_mask_of_the_unturned_pixels_of_a_turned_photograph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a_generation.jpg").write_bytes((CASES / "exif6.jpg").read_bytes())
    (tmp_path / "a_caption.txt").write_text("a shape")
    unturned = Image.open(CASES / "mask8.png").transpose(Image.Transpose.ROTATE_90)
    assert unturned.size == (64, 96)
    unturned.save(tmp_path / "a_mask.png")
    assert "a: its mask is 64×96 pixels and its picture 96×64" in refusal(lambda: open_triplets(tmp_path).check())
    unturned.save(tmp_path / "a_generation_mask.png")
    assert "64×96 pixels and its picture 96×64" in refusal(lambda: load_masked_image(tmp_path / "a_generation.jpg"))


def test_a_grey_mask_is_said_to_be_grey(tmp_path: Path) -> None:
    (tmp_path / "a_generation.png").write_bytes((CASES / "plain.png").read_bytes())
    (tmp_path / "a_caption.txt").write_text("a shape")
    to_image(0.4 * mask(CASES / "mask8.png")).save(tmp_path / "a_mask.png")
    assert "a: its mask is at most 40% white in the square" in refusal(lambda: open_triplets(tmp_path).check())
