"""Contact sheets: a table of images with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# In pixels.
_GAP = 8
_FONT_SIZE = 15


def contact_sheet(
    images: Sequence[Sequence[Image.Image | None]], rows: Sequence[str], columns: Sequence[str], side: int = 256
) -> Image.Image:
    """Arrange images in a table. Each is scaled to fit a square of `side` pixels; None leaves a cell empty.

    `images`: row by row. `rows`: labels of the rows, on the left. `columns`: labels of the columns, at the top. Long
    labels are wrapped, and cut off at the cell's height. Pillow's built-in font has Latin letters only.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    heads = [wrap(label, font, side) for label in columns]
    line = math.ceil(font.getbbox("A")[3]) + _GAP // 2
    top = max((len(lines) for lines in heads), default=0) * line + 2 * _GAP
    left, step = side + 2 * _GAP, side + _GAP
    sheet = Image.new("RGB", (left + len(columns) * step, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        draw.multiline_text((left + column * step, _GAP), "\n".join(lines), "black", font, spacing=_GAP // 2)
    for row, (label, cells) in enumerate(zip(rows, images, strict=True)):
        lines = wrap(label, font, side)[: side // line]
        draw.multiline_text((_GAP, top + row * step), "\n".join(lines), "black", font, spacing=_GAP // 2)
        for column, image in enumerate(cells):
            if image:
                scale = side / max(image.size)
                width, height = (max(1, round(length * scale)) for length in image.size)
                sheet.paste(image.resize((width, height)), (left + column * step, top + row * step))
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels. A word that is longer has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
