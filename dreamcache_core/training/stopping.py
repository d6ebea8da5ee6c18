"""Stopping a training from outside its process, at the end of a step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_REQUEST = 1.0
"""Seconds in which a repeated signal still belongs to the first: launchers pass on what the terminal sent already."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Take SIGINT and SIGTERM as requests to stop: the function it gives says whether there was one.

    A second signal raises KeyboardInterrupt at once. Works in the main thread only.
    """
    first: float | None = None

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is not None and time.monotonic() - first > _SAME_REQUEST:
            raise KeyboardInterrupt
        first = time.monotonic() if first is None else first

    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield lambda: first is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
