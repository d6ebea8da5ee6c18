"""Tile sheets: labelled pictures that wrap, with letters that stay legible at the width of a node."""

from __future__ import annotations

import pytest
from dreamcache.dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet
from PIL import Image

NODE_WIDTH = 620
"""At which a fresh node shows its sheet, in pixels of the screen at 100 % zoom."""


@pytest.mark.parametrize("columns", [2, 4, 6, 12])
def test_letters_are_at_least_twelve_pixels_high_on_a_node_however_wide_the_sheet(columns: int) -> None:
    sheet = TileSheet("What it shows", [Section("", [Tile("coarse", None)] * columns)], columns)
    shown = min(NODE_WIDTH / sheet.width, 1)
    assert sheet.letters * shown >= 12


def test_tiles_wrap_and_each_picture_stands_whole_in_its_place() -> None:
    red, wide_blue = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (200, 100), "blue")
    tiles = [Tile("a label " * 40, red), Tile("short", None), Tile("", wide_blue)]
    sheet = TileSheet("caption", [Section("one", tiles), Section("two", [Tile("x", red)])], columns=2, side=64)
    picture = sheet.draw()
    assert picture.width == 8 + 2 * 72
    (first, second, third), (fourth,) = sheet.boxes()
    assert second[1] == first[1] and third[0] == first[0] and third[1] > first[3] and fourth[1] > third[3]
    assert picture.crop(first).getcolors() == [(64 * 64, (255, 0, 0))]
    assert picture.crop(second).getcolors() == [(64 * 64, (255, 255, 255))]
    assert (64 * 32, (0, 0, 255)) in (picture.crop(third).getcolors() or [])
    assert picture.crop(fourth).getcolors() == [(64 * 64, (255, 0, 0))]


def test_an_empty_title_and_caption_take_no_room() -> None:
    tiles = [Tile("label", None)]
    heights = [TileSheet(text, [Section(text, tiles)], columns=1, side=64).draw().height for text in ("", "text")]
    assert heights[0] == 8 + 8 + (15 + 4 + 4) + 64 + 8
    assert heights[1] > heights[0]
