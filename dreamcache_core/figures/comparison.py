"""Comparisons: every combination of the values of some settings, as the rows and columns of a table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import DreamCacheError
from ..io.numbers import read_numbers

Settings = dict[str, float]


def read_values(name: str, text: str, low: float, high: float, whole: bool = False) -> tuple[float, ...]:
    """The values of a setting from a list such as `0, 0.5, 1`, each once.

    `name`: of the setting, for the message. `whole`: whether it has whole numbers only.
    Raises DreamCacheError unless they are numbers from `low` to `high`.
    """
    values = read_numbers(text, low, high, whole=whole)
    if not values:
        numbers = "whole numbers" if whole else "numbers"
        raise DreamCacheError(
            f'"{text}" is not a valid list for {name}: write {numbers} from {low:g} to {high:g} separated by commas.'
        )
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class Comparison:
    """The settings of each row and of each column of a table; a cell has those of both."""

    rows: tuple[Settings, ...]
    columns: tuple[Settings, ...]

    @property
    def row_labels(self) -> list[str]:
        return _labels(self.rows)

    @property
    def column_labels(self) -> list[str]:
        return _labels(self.columns)


def compare(values: Mapping[str, Sequence[float]]) -> Comparison:
    """The table of every combination of values. Columns vary the first setting that has several values, rows the rest.

    `values`: of each setting, at least one.
    """
    across = next((name for name, several in values.items() if len(several) > 1), next(iter(values)))
    down = [[(name, value) for value in several] for name, several in values.items() if name != across]
    return Comparison(
        rows=tuple(map(dict, itertools.product(*down))),
        columns=tuple({across: value} for value in values[across]),
    )


def _labels(settings: Sequence[Settings]) -> list[str]:
    """Labels with the settings in which they differ."""
    differing = [name for name in settings[0] if len({each[name] for each in settings}) > 1]
    return [", ".join(f"{name} {_word(each[name])}" for name in differing) for each in settings]


def _word(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
