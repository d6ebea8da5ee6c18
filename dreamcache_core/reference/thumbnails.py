"""Thumbnails of references, which their files carry: small JPEGs."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

from ..io.json_fields import Fields, MalformedError

THUMBNAIL_SIZE = 160
"""The longer side of a thumbnail in pixels."""
# Files of others may have larger ones, but none whose pixels take long or much memory.
_MAX_SIZE = 512


def make_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of the entire image."""
    file = io.BytesIO()
    ImageOps.contain(image.convert("RGB"), (THUMBNAIL_SIZE, THUMBNAIL_SIZE)).save(file, "JPEG", quality=80)
    return file.getvalue()


def read_thumbnails(source: Fields) -> tuple[bytes, ...]:
    """The thumbnails in the header of a file. Raises MalformedError unless each is a JPEG that can be decoded."""
    return tuple(_read_thumbnail(text) for text in source.items("thumbnails"))


def _read_thumbnail(text: object) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError("not a text")
        content = base64.b64decode(text, validate=True)
        image = Image.open(io.BytesIO(content), formats=["JPEG"])
        if max(image.size) > _MAX_SIZE:
            raise ValueError(f"it has {image.width}×{image.height} pixels")
        image.load()
    except Exception as error:  # Pillow's decoders raise many types for a damaged file.
        raise MalformedError("a thumbnail is no small JPEG") from error
    return content
