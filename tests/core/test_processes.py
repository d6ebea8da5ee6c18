"""Training without Accelerate."""

from __future__ import annotations

import sys

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.processes import Processes, join_processes


def test_accelerate_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert join_processes(cpu=True) == Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DreamCacheError, match=r"^Accelerate is not installed, .* pip install accelerate"):
        join_processes(cpu=True)
