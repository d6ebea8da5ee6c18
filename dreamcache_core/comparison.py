"""Comparisons: every combination of some settings, as the rows and columns of a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import DreamCacheError

Settings = dict[str, float]


def read_values(name: str, text: str, low: float, high: float, whole: bool = False) -> tuple[float, ...]:
    """Values of a setting as a person writes them, `0, 0.5, 1`; whole numbers if it has only these.

    Raises DreamCacheError, which calls the setting `name`, unless they are numbers from `low` to `high`.
    """
    words = re.split(r"[\s,;]+", text.strip(" \t\n,;"))
    try:
        values = tuple(map(int if whole else float, words))
    except ValueError:
        values = ()
    if not values or not all(low <= value <= high for value in values):
        numbers = "whole numbers" if whole else "numbers"
        raise DreamCacheError(
            f'"{text}" is no list for {name}: write {numbers} from {low:g} to {high:g} with commas between them.'
        )
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class Comparison:
    """Settings of each row and of each column of a table; what is in a place has those of both."""

    rows: tuple[Settings, ...]
    columns: tuple[Settings, ...]

    @property
    def row_labels(self) -> list[str]:
        return _labels(self.rows)

    @property
    def column_labels(self) -> list[str]:
        return _labels(self.columns)


def compare(values: Mapping[str, Sequence[float]]) -> Comparison:
    """Every combination of the values of settings, of each at least one. Columns have those of the first setting that
    has several, rows all others.
    """
    across = next((name for name, several in values.items() if len(several) > 1), next(iter(values)))
    down = [[(name, value) for value in several] for name, several in values.items() if name != across]
    return Comparison(
        rows=tuple(map(dict, itertools.product(*down))),
        columns=tuple({across: value} for value in values[across]),
    )


def _labels(settings: Sequence[Settings]) -> list[str]:
    """What tells them from one another."""
    differing = [name for name in settings[0] if len({each[name] for each in settings}) > 1]
    return [", ".join(f"{name} {_word(each[name])}" for name in differing) for each in settings]


def _word(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
