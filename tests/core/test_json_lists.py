"""Large JSON files: their lists are read an element at a time, wherever the text is cut into pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.io import json_lists
from dreamcache.dreamcache_core.io.json_lists import read_lists

CONTENT = {
    "info": {"list": [1, 2], "text": 'a "quote", [ and }'},
    "numbers": [1, 23, -4.5e3, 678],
    "empty": [],
    "year": 2017,
    "records": [{"id": 1, "text": "ünïcödé ]"}, [1, [2]], None, True, "text, with: signs"],
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1000])
def test_elements_are_those_of_the_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, piece: int
) -> None:
    monkeypatch.setattr(json_lists, "_CHARACTERS_AT_ONCE", piece)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=False), encoding="utf-8")
    expected = [(name, each) for name in ("numbers", "records") for each in CONTENT[name]]  # type: ignore[attr-defined]
    assert list(read_lists(path)) == expected


def test_elements_come_before_the_rest_of_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"records": [{"id": number} for number in range(200_000)]})[:-2] + "damage")
    elements = read_lists(path)
    assert [next(elements) for _ in range(1000)] == [("records", {"id": number}) for number in range(1000)]
