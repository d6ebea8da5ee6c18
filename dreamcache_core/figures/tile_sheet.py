"""Tile sheets: labelled pictures in rows that wrap, large enough to be read on a node.

A node shows a sheet scaled to its own width, so the letters are sized by the sheet's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import wrap

_GAP = 8
LETTERS = 44
"""The sheet's width divided by this is the size of its letters: 14 pixels on a sheet that is shown 620 pixels wide."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Tile:
    """A picture and the label above it. Without a picture, its place stays empty."""

    label: str
    picture: Image.Image | None


@dataclass(frozen=True)
class Section:
    """Tiles under a common title. An empty title takes no room."""

    title: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class TileSheet:
    """Sections below each other, under a caption that says what the colours mean. An empty caption takes no room.

    `columns`: number of tiles in a row; more wrap. `side`: of the square that each picture is scaled to fit, in pixels.
    """

    caption: str
    sections: Sequence[Section]
    columns: int
    side: int = 256

    @property
    def width(self) -> int:
        return _GAP + self.columns * (self.side + _GAP)

    @property
    def letters(self) -> int:
        """Size of the letters, in pixels."""
        return max(15, math.ceil(self.width / LETTERS))

    def draw(self) -> Image.Image:
        """Draw the sheet. Pillow's built-in font has Latin letters only."""
        boxes, texts, height = self._lay_out()
        sheet = Image.new("RGB", (self.width, height), "white")
        draw = ImageDraw.Draw(sheet)
        font = self._font
        for (x, y), text in texts:
            draw.multiline_text((x, y), text, "black", font, spacing=_GAP // 2)
        for section, places in zip(self.sections, boxes, strict=True):
            for tile, (left, top, _, _) in zip(section.tiles, places, strict=True):
                if tile.picture:
                    sheet.paste(_fit(tile.picture, self.side), (left, top))
        return sheet

    def boxes(self) -> list[list[Box]]:
        """Where the pictures are: section by section, the square of each tile."""
        return self._lay_out()[0]

    @property
    def _font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(self.letters)

    def _lay_out(self) -> tuple[list[list[Box]], list[tuple[tuple[int, int], str]], int]:
        """The boxes of all tiles, the texts with their places, and the sheet's height."""
        font, line = self._font, self.letters + _GAP // 2
        texts: list[tuple[tuple[int, int], str]] = []
        boxes: list[list[Box]] = []
        y = _GAP

        def write(x: int, text: str, width: int) -> int:
            """Add a text in lines of at most `width` pixels. Returns the height that it takes."""
            lines = [broken for given in text.splitlines() for broken in wrap(given, font, width)]
            if lines:
                texts.append(((x, y), "\n".join(lines)))
            # And room for the tails of letters.
            return len(lines) * line + _GAP // 2 if lines else 0

        y += write(_GAP, self.caption, self.width - 2 * _GAP) + _GAP
        for section in self.sections:
            if section.title:
                y += _GAP
                y += write(_GAP, section.title, self.width - 2 * _GAP) + _GAP
            places: list[Box] = []
            for first in range(0, len(section.tiles), self.columns):
                row = section.tiles[first : first + self.columns]
                lefts = [_GAP + column * (self.side + _GAP) for column in range(len(row))]
                y += max(write(x, tile.label, self.side) for x, tile in zip(lefts, row, strict=True))
                places += [(x, y, x + self.side, y + self.side) for x in lefts]
                y += self.side + _GAP
            boxes.append(places)
        return boxes, texts, y


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height))
