"""What a public data set is to the rest of this package: rows, each of which makes triplets of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ..errors import DreamCacheError
from ..io.images import read_image


@dataclass(frozen=True, eq=False)
class PictureTriplet:
    """A triplet that isn't written yet.

    `picture`: the target. `mask`: white on the subject, which is then cut out of the target. `reference`: another
    picture of the subject. One of the two is needed.
    """

    picture: Image.Image
    caption: str
    mask: Image.Image | None = None
    reference: Image.Image | None = None


@dataclass(frozen=True)
class LeftOut:
    """Something that makes no triplet.

    `name`: what it is and where. `reason`: the same words for all that are left out for the same reason. `detail`: what
    is particular about this one.
    """

    name: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


class UnusableError(Exception):
    """Raised where a row, or a part of it, turns out to make no triplet. For `reason` and `detail`, see LeftOut."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Row:
    """A row of a data set. `make` reads it, in any thread. It raises UnusableError if all of the row is."""

    name: str
    make: Callable[[], Sequence[PictureTriplet | LeftOut]]


class Source(Protocol):
    """A data set on disk. Its rows have an order, which is the same each time.

    `identity`: all that its triplets depend on, as JSON holds it.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int:
        """How many rows there are."""

    def rows(self, first: int) -> Iterator[Row]:
        """The rows from number `first` on, counted from 0. Reads them as they are taken."""


def decode_picture(read: Callable[[], bytes]) -> Image.Image:
    """Decode a picture as RGB. Raises UnusableError if it can't be."""
    try:
        return read_image(read, "The picture")
    except DreamCacheError as error:
        raise UnusableError("its picture cannot be decoded") from error
