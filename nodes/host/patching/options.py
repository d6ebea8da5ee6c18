"""DreamCache's two keys in `transformer_options`."""

from __future__ import annotations

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
