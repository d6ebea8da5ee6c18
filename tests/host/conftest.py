"""Tests of what touches ComfyUI, with a real ComfyUI in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support import pack  # noqa: F401


@pytest.fixture(params=["trained", "own attention"])
def applied(request: pytest.FixtureRequest, studio: Any) -> Callable:
    """Apply DreamCache, with a trained adapter or the model's own attention: model, settings → model."""
    from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
    from dreamcache.nodes.host.patching.apply import inject

    cache = studio.cache()

    def apply(model: Any, **settings: Any) -> Any:
        injection = studio.injection(cache=cache, **settings)
        if request.param == "own attention":
            injection = replace(injection, adapter=SelfAttentionAdapter())
        return inject(model, injection)

    return apply
