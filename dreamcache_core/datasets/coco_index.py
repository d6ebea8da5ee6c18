"""The annotations of a data set in COCO's format, sorted by picture.

They are sorted in a temporary database on disk: the annotations of a data set may not fit into memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DreamCacheError
from ..io.json_lists import read_lists

_TABLES = """
    CREATE TABLE pictures (id PRIMARY KEY, record);
    CREATE TABLE objects (picture, record);
    CREATE TABLE captions (picture, caption);
    CREATE TABLE categories (id PRIMARY KEY, name);
"""
_SORTED = """
    CREATE INDEX objects_of_picture ON objects (picture);
    CREATE INDEX captions_of_picture ON captions (picture);
    CREATE TABLE sorted AS SELECT id FROM pictures UNION SELECT picture FROM objects ORDER BY 1;
"""
_TOO_LARGE = 2**63
"""For an integer in SQLite."""


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture with its annotations, as the files have them.

    `record`: of the list `images`, None if the picture isn't listed. `objects`: of the list `annotations`.
    """

    name: str
    record: dict[str, Any] | None
    objects: tuple[dict[str, Any], ...]
    captions: tuple[str, ...]


class CocoIndex:
    """The annotated pictures in order of their ids. Annotations without a picture belong to one that isn't listed.

    `instances`: file of the objects. `captions`: file of the captions, None for none. Use it in one thread.
    Raises DreamCacheError if a file can't be read, or lists no pictures.
    """

    def __init__(self, instances: Path, captions: Path | None) -> None:
        self._database = sqlite3.connect("")  # SQLite's name for a temporary file, which it removes by itself.
        self._database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES}")
        self._fill(_records(instances))
        if captions:
            self._fill_captions(_records(captions))
        self._database.executescript(_SORTED)
        self._database.commit()
        if not self._database.execute("SELECT count(*) FROM pictures").fetchone()[0]:
            raise DreamCacheError(f"{instances} lists no images: choose a file of instances in COCO's format.")
        self.categories = dict(self._database.execute("SELECT id, name FROM categories"))
        self.has_captions = captions is not None

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM sorted").fetchone()[0]

    def pictures(self, first: int) -> Iterator[AnnotatedPicture]:
        """The pictures from number `first` on, counted from 0."""
        execute = self._database.execute
        for (picture,) in execute("SELECT id FROM sorted WHERE rowid > ? ORDER BY rowid", (first,)):
            found = execute("SELECT record FROM pictures WHERE id = ?", (picture,)).fetchone()
            objects = execute("SELECT record FROM objects WHERE picture IS ? ORDER BY rowid", (picture,))
            captions = execute("SELECT caption FROM captions WHERE picture IS ? ORDER BY rowid", (picture,))
            yield AnnotatedPicture(
                f"image {picture}",
                json.loads(found[0]) if found else None,
                tuple(json.loads(record) for (record,) in objects),
                tuple(caption for (caption,) in captions),
            )

    def _fill(self, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for name, record in records:
            if name == "images":
                row = (_key(record.get("id")), json.dumps(record))
                self._database.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?)", row)
            elif name == "annotations":
                row = (_key(record.get("image_id")), json.dumps(record))
                self._database.execute("INSERT INTO objects VALUES (?, ?)", row)
            elif name == "categories":
                row = (_key(record.get("id")), _text(str(record.get("name", ""))).replace("_", " "))
                self._database.execute("INSERT OR IGNORE INTO categories VALUES (?, ?)", row)

    def _fill_captions(self, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for name, record in records:
            caption = record.get("caption")
            if name == "annotations" and isinstance(caption, str) and caption.strip():
                row = (_key(record.get("image_id")), _text(caption.strip()))
                self._database.execute("INSERT INTO captions VALUES (?, ?)", row)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The elements of a file's lists. One that is no object is given as an empty one."""
    return ((name, record if isinstance(record, dict) else {}) for name, record in read_lists(path))


def _key(value: Any) -> int | str | None:
    """An id as the database can hold it, None if it isn't one."""
    if isinstance(value, str):
        return _text(value)
    return value if isinstance(value, int) and abs(value) < _TOO_LARGE else None


def _text(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can have, but neither the database nor UTF-8."""
    return text.encode(errors="replace").decode()
