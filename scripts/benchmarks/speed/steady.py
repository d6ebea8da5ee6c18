"""A CPU on which the same work takes the same time."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of glibc's mallopt: when free memory is given back to the system, how much comes from it piece by piece, and how many
# heaps the threads have.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def use_one_heap() -> None:
    """To be called before there are threads, which would get heaps of their own, and slower ones."""
    _set_malloc({_ARENA_MAX: 1})


@contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """On a CPU, one core does it all, and memory that is free is kept, where system and C library let it.

    Else each large tensor is of pages that the system clears first, which can take as long as to compute it.
    """
    if device.type != "cpu":
        yield
        return
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    _set_malloc({_TRIM_THRESHOLD: -1, _MMAP_MAX: 0})
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        _set_malloc({_TRIM_THRESHOLD: 2**17, _MMAP_MAX: 2**16})


def _set_malloc(options: Mapping[int, int]) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in options.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
