"""Tests of the front end, in a real browser on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support import pack  # noqa: F401

if TYPE_CHECKING:
    from harness.front_end import FrontEnd


@pytest.fixture
def front_end(opened: FrontEnd) -> Iterator[FrontEnd]:
    """The front end that a module has `opened`, with an empty graph. A test fails if the page complains of anything."""
    opened.load_blank()
    yield opened
    errors = list(opened.errors)
    opened.errors.clear()
    assert not errors
