"""Large JSON files, read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import DreamCacheError

_CHARACTERS_AT_ONCE = 2**20
_SPACE = " \t\r\n"
_AFTER_VALUE = f"{_SPACE},:]}}"


def read_lists(path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of all lists in the object that a JSON file holds, one at a time, as (name of the list, element).

    Keeps no more of the file in memory than the longest element needs. What isn't in a list is skipped.
    Raises DreamCacheError if the file can't be read, or isn't such JSON; perhaps after a number of elements.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _lists(_Window(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged or not JSON"
        raise DreamCacheError(f"{path} cannot be read: {reason}.") from error


def _lists(window: _Window) -> Iterator[tuple[str, Any]]:
    window.expect("{")
    if window.peek() == "}":
        return
    while True:
        name = window.value()
        window.expect(":")
        if window.peek() == "[":
            window.expect("[")
            while window.peek() != "]":
                yield name, window.value()
                if window.peek() != "]":
                    window.expect(",")
            window.expect("]")
        else:
            window.value()
        if window.peek() == "}":
            return
        window.expect(",")


class _Window:
    """The part of a JSON text that is being read. Its methods raise ValueError if the text is not as expected."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that isn't white space, empty at the end of the file."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in _SPACE:
                    return self._text[self._position]
                self._position += 1
            if not self._read(_CHARACTERS_AT_ONCE):
                return ""

    def expect(self, character: str) -> None:
        """Go past a character."""
        if self.peek() != character:
            raise ValueError(f"{character} expected")
        self._position += 1

    def value(self) -> Any:
        """Go past a value, and return it."""
        self.peek()
        count = _CHARACTERS_AT_ONCE
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except ValueError:
                if not self._read(count):
                    raise
            else:
                # A number may go on behind the window's end, as in 12|34 or 12e|3.
                if (end < len(self._text) and self._text[end] in _AFTER_VALUE) or not self._read(count):
                    self._position = end
                    return value
            count *= 2

    def _read(self, count: int) -> bool:
        """Move the window on to hold what isn't read yet, and `count` characters more. Returns False at the end."""
        more = self._file.read(count)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)
