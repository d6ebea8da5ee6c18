"""Tables for the pages that scripts write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> list[str]:
    """The lines of a table; without `rows`, those of its head."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
