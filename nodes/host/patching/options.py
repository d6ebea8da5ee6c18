"""DreamCache's two keys in `transformer_options`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEY = "dreamcache"
"""The injections on this model, all of them, always. It names our wrappers and additional models on a ModelPatcher,
too.
"""
RUN_KEY = "dreamcache_run"
"""The RunState of a sampling run or of a single evaluation."""

Options = dict[str, Any]


def with_options(model_options: Options, changes: Options) -> Options:
    """A copy of `model_options` with changed transformer_options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **changes}}


@contextmanager
def changed(model_options: Options, changes: Options) -> Iterator[None]:
    """Changes `model_options` for a while, in place: other nodes keep state in the object that each step hands on."""
    missing = object()
    before = {name: model_options.get(name, missing) for name in changes}
    model_options.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                model_options.pop(name, None)
            else:
                model_options[name] = value
