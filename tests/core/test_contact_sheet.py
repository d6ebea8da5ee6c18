"""Contact sheets: each picture is where its row and column are."""

from __future__ import annotations

from dreamcache.dreamcache_core.figures.contact_sheet import contact_sheet
from PIL import Image


def test_pictures_stand_whole_in_their_rows_and_columns_and_labels_beside_them() -> None:
    red, wide_blue = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (200, 100), "blue")
    labels = ["a label " * 40, "short"], ["one", "two"]
    sheet = contact_sheet([[red, None], [None, wide_blue]], *labels, side=64)
    of_red, of_blue = (_box(sheet, colour) for colour in ((255, 0, 0), (0, 0, 255)))
    assert (of_red[2] - of_red[0], of_red[3] - of_red[1]) == (64, 64)
    assert (of_blue[2] - of_blue[0], of_blue[3] - of_blue[1]) == (64, 32)
    assert of_blue[0] >= of_red[2]
    assert of_blue[1] >= of_red[3]
    # Beside the first picture, its label; and none of it where other pictures may be.
    assert sheet.crop((0, of_red[1], of_red[0], of_red[3])).getcolors() != [(of_red[0] * 64, (255, 255, 255))]
    assert sheet.crop((of_red[2], of_red[1], sheet.width, of_red[3])).getcolors(1) is not None


def _box(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    pixels = sheet.load()
    assert pixels
    places = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if pixels[x, y] == colour]
    columns, rows = zip(*places, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1
