"""Subjects200K: pairs of pictures of a subject, in parquet files as the Hugging Face Hub stores them.

A row has an `image` with both pictures side by side, a `description` with a caption for each, and a
`quality_assessment` of three scores from 0 to 5. Both directions of a pair are triplets: either picture is the target
with its own caption, and the other one is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DreamCacheError
from .source import LeftOut, PictureTriplet, Row, UnusableError, decode_picture

_COLUMNS = ("image", "description", "quality_assessment")
_SCORES = ("compositeStructure", "objectConsistency", "imageQuality")
_CAPTIONS = ("description_0", "description_1")

_ROWS_PER_BATCH = 32
# How a file is read: no more of it than a row group is in memory, which has a hundred rows in the Hub's files.
_READING = {"buffer_size": 2**20, "pre_buffer": False}

QUALITY = 5
PADDING = 16


@dataclass(frozen=True)
class _File:
    """A parquet file. `rows`: None if it can't be read."""

    path: Path
    rows: int | None

    def __len__(self) -> int:
        return 1 if self.rows is None else self.rows  # A damaged file is left out like a row.


class Subjects200K:
    """The pairs in parquet files.

    `data`: a file, or a folder of files. `quality`: the least that each score must be; 0 also takes rows without
    scores. `padding`: pixels by which each half of an image is larger than the picture in its middle.
    Raises DreamCacheError if there is no file, or if pyarrow isn't installed.
    """

    def __init__(self, data: Path, quality: float = QUALITY, padding: int = PADDING) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DreamCacheError("Parquet files need pyarrow: run pip install pyarrow.") from error
        self._parquet, self._errors = pyarrow.parquet, (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        paths = sorted(data.rglob("*.parquet")) if data.is_dir() else [data] if data.is_file() else []
        if not paths:
            raise DreamCacheError(f"There are no parquet files in {data}: choose the folder that holds them.")
        self._quality, self._padding = quality, padding
        self._files = [_File(path, self._count(path)) for path in paths]

    @property
    def identity(self) -> Mapping[str, Any]:
        files = [[file.path.name, file.path.stat().st_size] for file in self._files]
        return {"data": "Subjects200K", "files": files, "quality": self._quality, "padding": self._padding}

    def __len__(self) -> int:
        return sum(len(file) for file in self._files)

    def rows(self, first: int) -> Iterator[Row]:
        for file in self._files:
            if first < len(file):
                yield from self._rows(file, max(first, 0))
            first -= len(file)

    def _count(self, path: Path) -> int | None:
        try:
            return self._parquet.read_metadata(path).num_rows
        except self._errors:
            return None

    def _rows(self, file: _File, first: int) -> Iterator[Row]:
        if file.rows is None:
            yield Row(file.path.name, partial(_refuse, "the file is damaged or not parquet"))
            return
        with self._parquet.ParquetFile(file.path, **_READING) as parquet:
            # None for all of them: rows without any of the columns must still be counted.
            columns = [name for name in _COLUMNS if name in parquet.schema_arrow.names] or None
            number = 0
            for group in range(parquet.num_row_groups):
                end = number + parquet.metadata.row_group(group).num_rows
                if first < end:
                    for row in self._rows_of_group(parquet, group, file.path.name, columns, number, end):
                        if number >= first:
                            yield row
                        number += 1
                number = end

    def _rows_of_group(
        self, parquet: Any, group: int, file: str, columns: list[str] | None, number: int, end: int
    ) -> Iterator[Row]:
        """The rows of a row group, from `number` up to `end`. Those after damage are there too, and can't be made."""
        try:
            for batch in parquet.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=columns):
                for index in range(batch.num_rows):
                    yield Row(f"{file}, row {number}", partial(self._make, batch, index))
                    number += 1
        except self._errors:
            for rest in range(number, end):
                yield Row(f"{file}, row {rest}", partial(_refuse, "its part of the file is damaged"))

    def _make(self, batch: Any, index: int) -> list[PictureTriplet | LeftOut]:
        try:
            row = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        except self._errors as error:
            raise UnusableError("its values cannot be read") from error
        captions = _captions(row)
        self._check_quality(row)
        content = _image_bytes(row)
        left, right = self._split(decode_picture(lambda: content))
        return [
            PictureTriplet(left, captions[0], reference=right),
            PictureTriplet(right, captions[1], reference=left),
        ]

    def _check_quality(self, row: Mapping[str, Any]) -> None:
        if self._quality <= 0:
            return
        scores = _struct(row, "quality_assessment")
        for name in _SCORES:
            score = scores.get(name)
            if score is None:
                raise UnusableError("it has no scores of quality", f"{name} is missing")
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise UnusableError("a value has the wrong type", name)
            if not score >= self._quality:
                raise UnusableError("its quality is too low", f"{name} is {score}")

    def _split(self, image: Image.Image) -> tuple[Image.Image, Image.Image]:
        """The two pictures of an image, as squares."""
        half, margin = image.width // 2, self._padding // 2
        side = min(half, image.height) - 2 * margin
        if side <= 0 or not 0.9 < half / image.height < 1.1:
            raise UnusableError("its image is not two squares side by side", f"{image.width}×{image.height}")
        top = (image.height - side) // 2
        left, right = ((half - side) // 2 + start for start in (0, image.width - half))
        return image.crop((left, top, left + side, top + side)), image.crop((right, top, right + side, top + side))


def _refuse(reason: str) -> list[PictureTriplet | LeftOut]:
    raise UnusableError(reason)


def _captions(row: Mapping[str, Any]) -> tuple[str, str]:
    description = _struct(row, "description")
    if description.get("description_valid") is False:
        raise UnusableError("its description is not valid")
    captions = []
    for name in _CAPTIONS:
        caption = description.get(name)
        if caption is not None and not isinstance(caption, str):
            raise UnusableError("a value has the wrong type", name)
        if not caption or not caption.strip():
            raise UnusableError("its description is not valid", f"{name} is missing")
        captions.append(caption.strip())
    return captions[0], captions[1]


def _struct(row: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    """The fields of a column, none if it is empty."""
    if column not in row:
        raise UnusableError("a column is missing", column)
    value = row[column]
    if value is not None and not isinstance(value, dict):
        raise UnusableError("a value has the wrong type", column)
    return value or {}


def _image_bytes(row: Mapping[str, Any]) -> bytes:
    content = _struct(row, "image").get("bytes")
    if content is None:
        raise UnusableError("its picture is missing")
    if not isinstance(content, bytes):
        raise UnusableError("a value has the wrong type", "image")
    return content
