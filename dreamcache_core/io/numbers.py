"""Lists of numbers in text: `1, 0.5, 0`."""

from __future__ import annotations

import re


def parse_numbers(text: str, low: float, high: float, *, whole: bool = False) -> tuple[float, ...] | None:
    """Parse a list of numbers, separated by commas, semicolons or spaces. An empty text gives an empty list.

    `whole`: allow whole numbers only, and return ints. Returns None if the text is not such a list, or if a number is
    outside `low`…`high`.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    try:
        numbers = tuple(map(int if whole else float, words))
    except ValueError:
        return None
    return numbers if all(low <= number <= high for number in numbers) else None
