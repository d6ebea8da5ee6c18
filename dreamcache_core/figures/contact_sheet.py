"""Contact sheets: pictures side by side in a table, with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_FONT_SIZE = 15


def contact_sheet(
    pictures: Sequence[Sequence[Image.Image | None]], rows: Sequence[str], columns: Sequence[str], side: int = 256
) -> Image.Image:
    """A table of pictures, each as large as a square of `side` pixels lets it be; None leaves a place empty.

    `rows`: labels, on the left. `columns`: labels, on top. Long ones are wrapped, and cut off where there is no room.
    Letters are those of Pillow's own font, which has Latin ones only.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    heads = [_wrap(label, font, side) for label in columns]
    line = math.ceil(font.getbbox("A")[3]) + _GAP // 2
    top = max((len(lines) for lines in heads), default=0) * line + 2 * _GAP
    left, step = side + 2 * _GAP, side + _GAP
    sheet = Image.new("RGB", (left + len(columns) * step, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        draw.multiline_text((left + column * step, _GAP), "\n".join(lines), "black", font, spacing=_GAP // 2)
    for row, (label, places) in enumerate(zip(rows, pictures, strict=True)):
        lines = _wrap(label, font, side)[: side // line]
        draw.multiline_text((_GAP, top + row * step), "\n".join(lines), "black", font, spacing=_GAP // 2)
        for column, picture in enumerate(places):
            if picture:
                scale = side / max(picture.size)
                width, height = (max(1, round(length * scale)) for length in picture.size)
                sheet.paste(picture.resize((width, height)), (left + column * step, top + row * step))
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, as far as single words let them be."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
