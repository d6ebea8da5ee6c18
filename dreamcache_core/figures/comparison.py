"""Comparisons: every combination of several settings' values, arranged as a table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import DreamCacheError
from ..io.numbers import parse_numbers

# Name of a setting → its value.
Settings = dict[str, float]


def parse_values(name: str, text: str, low: float, high: float, whole: bool = False) -> tuple[float, ...]:
    """Parse the values of a setting from a list such as `0, 0.5, 1`, without duplicates.

    `name`: of the setting, for the message. `whole`: allow whole numbers only, and return ints.
    Raises DreamCacheError unless `text` is a list of at least one number from `low` to `high`.
    """
    values = parse_numbers(text, low, high, whole=whole)
    if not values:
        numbers = "whole numbers" if whole else "numbers"
        raise DreamCacheError(
            f'"{text}" is not a valid list for {name}: write {numbers} from {low:g} to {high:g} separated by commas.'
        )
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class Comparison:
    """A table of settings: each cell has the settings of its row and of its column."""

    rows: tuple[Settings, ...]
    columns: tuple[Settings, ...]

    @property
    def row_labels(self) -> list[str]:
        return _labels(self.rows)

    @property
    def column_labels(self) -> list[str]:
        return _labels(self.columns)


def make_comparison(values: Mapping[str, Sequence[float]]) -> Comparison:
    """Arrange every combination of values: columns vary the first setting with several values, rows vary the others.

    `values`: name of a setting → its values, at least one.
    """
    across = next((name for name, several in values.items() if len(several) > 1), next(iter(values)))
    down = [[(name, value) for value in several] for name, several in values.items() if name != across]
    return Comparison(
        rows=tuple(map(dict, itertools.product(*down))),
        columns=tuple({across: value} for value in values[across]),
    )


def _labels(settings: Sequence[Settings]) -> list[str]:
    """A label for each of several settings: those values that differ among them."""
    differing = [name for name in settings[0] if len({each[name] for each in settings}) > 1]
    return [", ".join(f"{name} {_format(each[name])}" for name in differing) for each in settings]


def _format(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
