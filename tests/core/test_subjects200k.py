"""Subjects200K: pairs become triplets in both directions, and rows that can't be used are named and counted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from dreamcache.dreamcache_core.datasets.preparation import MadeRow, make_rows, prepare
from dreamcache.dreamcache_core.datasets.subjects200k import Subjects200K
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.dreamcache_core.training.triplets import open_triplets
from PIL import Image
from support.public_data import SCHEMA, SCORES, encode, pair, scene, subject_row, write_parquet


def made(data: Path, **options: Any) -> list[MadeRow]:
    return list(make_rows(Subjects200K(data, **options).rows(0), threads=2))


def left_out(rows: Sequence[MadeRow]) -> list[str]:
    return [str(each) for row in rows for each in row.left_out]


def close(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures are the same but for JPEG's losses."""
    return one.size == other.size and bool((to_tensor(one) - to_tensor(other)).abs().mean() < 0.02)


def test_both_directions_of_200_pairs_are_triplets_with_their_own_captions(tmp_path: Path) -> None:
    for file in range(2):
        rows = [subject_row(number) for number in range(100 * file, 100 * file + 100)]
        write_parquet(tmp_path / "data" / f"train-{file}.parquet", rows)
    report = prepare(Subjects200K(tmp_path / "data"), tmp_path / "triplets", threads=2)
    assert (report.rows, report.triplets, report.left_out.total()) == (200, 400, 0)

    triplets = open_triplets(tmp_path / "triplets").check()
    assert triplets.problems == ()
    assert len(triplets) == 400
    for index in (0, 1, 150, 151, 398, 399):
        number, side = divmod(index, 2)
        triplet = triplets.load(index, 64, seed=0, epoch=1)
        assert triplets.names[index] == f"00000/{number:08}_{side}"
        assert triplet.prompt == f"thing {number} on the {('left', 'right')[side]}"
        assert not triplet.augmented
        target, reference = (to_tensor(scene(number, number + half)) for half in (side, 1 - side))
        assert (triplet.target - target).abs().mean() < 0.02
        assert (triplet.reference - reference).abs().mean() < 0.02
        assert (triplet.target - reference).abs().mean() > 0.1


@pytest.mark.parametrize("side", [512, 1024])
def test_pictures_keep_their_size_and_lose_their_padding(tmp_path: Path, side: int) -> None:
    image = pair(1, side)
    assert image.size == (2 * side + 32, side + 16)
    row = subject_row(1, image={"bytes": encode(image, "JPEG"), "path": None})
    (result,) = made(write_parquet(tmp_path / "train.parquet", [row]))
    for triplet, half in zip(result.triplets, (1, 2), strict=True):
        picture = Image.open(io.BytesIO(triplet["generation.jpg"]))
        assert close(picture, scene(1, half).resize((side, side)))


def test_a_picture_that_is_target_and_reference_is_stored_once(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "train.parquet", [subject_row(number) for number in range(20)])
    prepare(Subjects200K(data), tmp_path / "triplets", threads=1)
    pictures = sum(len(content) for row in made(data) for content in row.triplets[0].values())
    # A tar's headers and blocks take up to 1,024 bytes for each of its 120 files.
    assert (tmp_path / "triplets" / "00000.tar").stat().st_size < pictures + 120 * 1024 + 10240


def test_rows_that_cannot_be_used_are_named_with_their_reason(tmp_path: Path) -> None:
    description = subject_row(0)["description"]
    scores = dict.fromkeys(SCORES, 5)
    image = encode(pair(0))
    unusable: list[tuple[dict[str, Any], str]] = [
        ({"description": description | {"description_valid": False}}, "its description is not valid"),
        ({"description": description | {"description_1": " "}}, "its description is not valid (description_1 is miss"),
        ({"description": None}, "its description is not valid (description_0 is missing)"),
        ({"quality_assessment": scores | {"imageQuality": 4}}, "its quality is too low (imageQuality is 4)"),
        ({"quality_assessment": scores | {"imageQuality": None}}, "it has no scores of quality (imageQuality is missi"),
        ({"quality_assessment": None}, "it has no scores of quality (compositeStructure is missing)"),
        ({"image": None}, "its picture is missing"),
        ({"image": {"bytes": None, "path": "elsewhere.png"}}, "its picture is missing"),
        ({"image": {"bytes": b"no picture", "path": None}}, "its picture cannot be decoded"),
        ({"image": {"bytes": image[: len(image) // 2], "path": None}}, "its picture cannot be decoded"),
        ({"image": {"bytes": encode(scene(0, 0)), "path": None}}, "its image is not two squares side by side (64×64)"),
    ]
    rows = [subject_row(0, **fields) for fields, _ in unusable]
    result = made(write_parquet(tmp_path / "train.parquet", [subject_row(1), *rows, subject_row(2)]))
    assert [len(row.triplets) for row in result] == [2, *[0] * len(rows), 2]
    for number, (said, (_, reason)) in enumerate(zip(left_out(result), unusable, strict=True), start=1):
        assert said.startswith(f"train.parquet, row {number}: {reason}")


def test_scores_below_the_threshold_and_rows_without_scores_are_taken_if_asked(tmp_path: Path) -> None:
    rows = [subject_row(0, quality_assessment=dict.fromkeys(SCORES, 4)), subject_row(1, quality_assessment=None)]
    data = write_parquet(tmp_path / "train.parquet", rows)
    assert [len(row.triplets) for row in made(data)] == [0, 0]
    assert [len(row.triplets) for row in made(data, quality=4)] == [2, 0]
    assert [len(row.triplets) for row in made(data, quality=0)] == [2, 2]


@pytest.mark.parametrize(
    ("column", "other", "reason"),
    [
        ("description", None, "a column is missing (description)"),
        ("image", None, "a column is missing (image)"),
        ("quality_assessment", None, "a column is missing (quality_assessment)"),
        ("description", "a text", "a value has the wrong type (description)"),
        ("quality_assessment", 5, "a value has the wrong type (quality_assessment)"),
        ("quality_assessment", dict.fromkeys(SCORES, "five"), "a value has the wrong type (compositeStructure)"),
        ("description", dict.fromkeys(("description_0", "description_1"), 1), "a value has the wrong type (descri"),
        ("image", {"bytes": "a text", "path": None}, "a value has the wrong type (image)"),
    ],
)
def test_a_file_with_other_columns_is_left_out_and_the_others_are_used(
    tmp_path: Path, column: str, other: Any, reason: str
) -> None:
    row = subject_row(0)
    if other is None:
        del row[column]
    else:
        row[column] = other
    write_parquet(tmp_path / "a.parquet", [row, row], schema=None)
    write_parquet(tmp_path / "b.parquet", [subject_row(1)])
    result = made(tmp_path)
    assert [len(each.triplets) for each in result] == [0, 0, 2]
    assert all(said.startswith(f"a.parquet, row {row}: {reason}") for row, said in enumerate(left_out(result)))


def test_a_damaged_file_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [subject_row(0)])
    (tmp_path / "a.parquet").write_bytes(b"PAR1, and no more")
    write_parquet(tmp_path / "b.parquet", [subject_row(1)])
    whole = write_parquet(tmp_path / "c.parquet", [subject_row(number) for number in range(150)])
    # The second of three groups of 50 rows.
    pictures = pyarrow.parquet.read_metadata(whole).row_group(1).column(0)
    with whole.open("r+b") as file:
        file.seek(pictures.dictionary_page_offset)
        file.write(bytes(pictures.total_compressed_size))

    result = made(tmp_path)
    said = left_out(result)
    assert said[0] == "a.parquet: the file is damaged or not parquet"
    assert said[1:] == [f"c.parquet, row {row}: its part of the file is damaged" for row in range(50, 100)]
    assert [len(row.triplets) for row in result] == [0, *[2] * 51, *[0] * 50, *[2] * 50]


def test_rows_can_be_taken_from_any_on(tmp_path: Path) -> None:
    for file in range(3):
        write_parquet(tmp_path / f"{file}.parquet", [subject_row(number) for number in range(60)])
    source = Subjects200K(tmp_path)
    names = [row.name for row in source.rows(0)]
    assert len(names) == len(source) == len(set(names)) == 180
    for first in (1, 49, 50, 59, 60, 61, 130, 179, 180):
        assert [row.name for row in source.rows(first)] == names[first:]


def test_a_folder_without_parquet_files_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DreamCacheError, match=r"There are no parquet files in .*: choose the folder"):
            Subjects200K(path)


def test_no_more_than_a_row_group_is_in_memory(tmp_path: Path) -> None:
    image = pyarrow.array([{"bytes": bytes(100_000), "path": None}] * 400, SCHEMA.field("image").type)
    write = pyarrow.parquet.write_table
    write(pyarrow.table({"image": image}), tmp_path / "a.parquet", row_group_size=50, use_dictionary=False)
    del image
    allocated = [pyarrow.total_allocated_bytes() for _ in Subjects200K(tmp_path).rows(0)]
    assert len(allocated) == 400
    assert max(allocated) < 15_000_000  # The pictures of three groups.
