"""Data sets in COCO's format: photographs with the masks of objects, and captions.

An object becomes a triplet: the target is a square of its picture, and the reference is cut out of it by the mask. COCO
itself has this format; LVIS and exports of Open Images do too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DreamCacheError
from .coco_index import AnnotatedPicture, CocoIndex
from .coco_mask import Outline, import_masks, read_outline
from .source import LeftOut, PictureTriplet, Row, UnusableError, decode_picture

# Pixels between an object and its picture's border. Masks of objects that are cut off often end just before it.
_BORDER = 2


@dataclass(frozen=True)
class Choice:
    """Which objects are taken. `smallest`, `largest`: area, as a fraction of the square. `objects`: of a picture."""

    smallest: float = 0.1
    largest: float = 0.8
    objects: int = 1


@dataclass(frozen=True)
class _Object:
    """An object that can be taken. `name`: of its annotation. `square`: left, top and side in its picture."""

    name: str
    category: str
    outline: Outline
    square: tuple[int, int, int]


class Coco:
    """The objects of a data set in COCO's format. A row is a picture.

    `instances`, `captions`: its files; without captions, prompts name the object's category. `images`: the folder of
    the pictures. Raises DreamCacheError if a file can't be read, or if pycocotools isn't installed.
    """

    def __init__(self, instances: Path, captions: Path | None, images: Path, choice: Choice) -> None:
        if not images.is_dir():
            raise DreamCacheError(f"{images} is not a folder: choose the one that holds the pictures.")
        import_masks()  # Before the annotations are sorted, which may take minutes.
        self._index = CocoIndex(instances, captions)
        self._files = [path for path in (instances, captions) if path]
        self._images, self._choice = images, choice

    @property
    def identity(self) -> Mapping[str, Any]:
        files = [[path.name, path.stat().st_size] for path in self._files]
        return {"data": "COCO", "files": files, **vars(self._choice)}

    def __len__(self) -> int:
        return len(self._index)

    def rows(self, first: int) -> Iterator[Row]:
        for picture in self._index.pictures(first):
            yield Row(picture.name, partial(self._make, picture))

    def _make(self, picture: AnnotatedPicture) -> Sequence[PictureTriplet | LeftOut]:
        if not picture.objects:
            raise UnusableError("it has no objects")
        outcomes: list[PictureTriplet | LeftOut] = []
        found: list[_Object] = []
        for record in picture.objects:
            name = f"annotation {record.get('id')} of {picture.name}"
            try:
                found.append(self._object(name, record, picture))
            except UnusableError as error:
                outcomes.append(LeftOut(name, error.reason, error.detail))
        found.sort(key=lambda each: each.outline.area, reverse=True)
        taken, others = found[: self._choice.objects], found[self._choice.objects :]
        outcomes += [LeftOut(each.name, "its picture has larger objects") for each in others]
        try:
            if taken:
                image = self._open(picture)
                outcomes += [self._triplet(each, image, picture) for each in taken]
        except UnusableError as error:
            outcomes += [LeftOut(each.name, error.reason, error.detail) for each in taken]
        return outcomes

    def _object(self, name: str, record: Mapping[str, Any], picture: AnnotatedPicture) -> _Object:
        width, height = _size(picture)
        if record.get("iscrowd"):
            raise UnusableError("it is a crowd")
        category = record.get("category_id")
        if not isinstance(category, int | str) or category not in self._index.categories:
            raise UnusableError("its category is not listed")
        outline = read_outline(record.get("segmentation"), width, height)
        share = outline.area / min(width, height) ** 2
        if share < self._choice.smallest:
            raise UnusableError("it is too small", f"{share:.3f} of the square")
        if share > self._choice.largest:
            raise UnusableError("it is too large", f"{share:.3f} of the square")
        if min(outline.left, outline.top, width - outline.right, height - outline.bottom) < _BORDER:
            raise UnusableError("it is cut by the border")
        if max(outline.right - outline.left, outline.bottom - outline.top) > min(width, height):
            raise UnusableError("it does not fit into a square of its picture")
        return _Object(name, self._index.categories[category], outline, _square(outline, width, height))

    def _open(self, picture: AnnotatedPicture) -> Image.Image:
        assert picture.record is not None  # Else it would have no objects that can be taken.
        path = self._path(picture.record)
        if path is None:
            raise UnusableError("its picture is missing")
        image = decode_picture(path.read_bytes)
        if image.size != _size(picture):
            width, height = _size(picture)
            raise UnusableError(
                "its picture has another size than listed", f"{image.width}×{image.height} instead of {width}×{height}"
            )
        return image

    def _path(self, record: Mapping[str, Any]) -> Path | None:
        """The picture's file. LVIS has only an address, which ends with COCO's folder and file."""
        name = record.get("file_name") or record.get("coco_url")
        parts = name.split("/") if isinstance(name, str) else []
        names = [Path(*parts), Path(*parts[-2:]), Path(parts[-1])] if parts else []
        return next((self._images / each for each in names if (self._images / each).is_file()), None)

    def _triplet(self, found: _Object, image: Image.Image, picture: AnnotatedPicture) -> PictureTriplet:
        left, top, side = found.square
        box = (left, top, left + side, top + side)
        mask = Image.fromarray(found.outline.draw(*image.size))
        return PictureTriplet(image.crop(box), self._caption(found.category, picture), mask=mask.crop(box))

    def _caption(self, category: str, picture: AnnotatedPicture) -> str:
        """The first caption that names the category, else the first one."""
        if not self._index.has_captions:
            return f"a photo of {'an' if category[:1] in 'aeiou' else 'a'} {category}"
        if not picture.captions:
            raise UnusableError("its picture has no caption")
        naming = (caption for caption in picture.captions if category.lower() in caption.lower())
        return next(naming, picture.captions[0])


def _size(picture: AnnotatedPicture) -> tuple[int, int]:
    """The width and height that are listed."""
    if picture.record is None:
        raise UnusableError("its picture is not listed")
    size = picture.record.get("width"), picture.record.get("height")
    if not all(type(length) is int and length > 0 for length in size):
        raise UnusableError("its picture is listed without a size")
    return size  # type: ignore[return-value]


def _square(outline: Outline, width: int, height: int) -> tuple[int, int, int]:
    """The largest square of a picture, with the object as near to its middle as the border allows."""
    side = min(width, height)
    left = round((outline.left + outline.right - side) / 2)
    top = round((outline.top + outline.bottom - side) / 2)
    return min(max(left, 0), width - side), min(max(top, 0), height - side), side
