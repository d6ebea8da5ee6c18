"""Lists of numbers as a person writes them: `1, 0.5, 0`."""

from __future__ import annotations

import re


def read_numbers(text: str, low: float, high: float, *, whole: bool = False) -> tuple[float, ...] | None:
    """The numbers of a list that commas, semicolons or spaces separate; empty for an empty text.

    `whole`: only whole numbers are allowed, and the result has ints. Returns None if the text is no such list, or if a
    number lies outside of `low`…`high`.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    try:
        numbers = tuple(map(int if whole else float, words))
    except ValueError:
        return None
    return numbers if all(low <= number <= high for number in numbers) else None
