"""JSON from files that anyone may have made: every field is checked against what its format says."""

from __future__ import annotations

import json
import sys
from typing import Any

MAX_TEXT = 100_000
"""Characters of a text."""


class MalformedError(ValueError):
    """JSON is not what its format says. The message says which field."""


def parse_json(text: str | bytes) -> Any:
    """Parse strict JSON: in UTF-8, without NaN and Infinity. Raises MalformedError."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from error


class Fields:
    """The fields of a JSON object.

    A method returns the value of a field, or its `default` if the object lacks the field. It raises MalformedError if
    the field is missing and has no default, or has a value of another type or outside the limits, which are inclusive.
    """

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise MalformedError("not an object")
        self._fields: dict[str, Any] = value

    def has(self, name: str) -> bool:
        """Whether there is such a field, and it isn't null."""
        return self._fields.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        # A lone surrogate, which JSON can hold, could be neither printed nor written.
        if not isinstance(value, str) or len(value) > MAX_TEXT or not (value.isascii() or is_unicode(value)):
            raise MalformedError(f"{name} is not a text")
        return value

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._fields.get(name, default)
        # Not `isinstance`: True is an int.
        if type(value) is not int or not low <= value <= high:
            raise MalformedError(f"{name} is not a whole number of {low}…{high}")
        return value

    def wholes(self, name: str, high: int) -> tuple[int, ...]:
        """A list of whole numbers of 0…`high`."""
        values = self._fields.get(name)
        if type(values) is not list or not all(type(value) is int and 0 <= value <= high for value in values):
            raise MalformedError(f"{name} is not a list of whole numbers of 0…{high}")
        return tuple(values)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number that isn't negative."""
        return _number(self._fields.get(name, default), name)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers that aren't negative."""
        return tuple(_number(item, name) for item in self.items(name))

    def flag(self, name: str) -> bool:
        value = self._fields.get(name)
        if not isinstance(value, bool):
            raise MalformedError(f"{name} is neither true nor false")
        return value

    def items(self, name: str) -> list[Any]:
        value = self._fields.get(name)
        if not isinstance(value, list):
            raise MalformedError(f"{name} is not a list")
        return value

    def object(self, name: str) -> Fields:
        return Fields(self._fields.get(name))

    def objects(self, name: str) -> tuple[Fields, ...]:
        return tuple(Fields(item) for item in self.items(name))


def _number(value: Any, name: str) -> float:
    # An int of JSON may be larger than any float.
    if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
        raise MalformedError(f"{name} is not a number")
    return float(value)


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, so that it can be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
