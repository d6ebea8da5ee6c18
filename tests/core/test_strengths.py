"""Strengths: groups of layers, curves over the steps, and lists of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from dreamcache.dreamcache_core.adapter.strengths import CURVES, LIST, at_progress, make_curve
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.unet import STAGES, group_of, select_layers
from support.structures import SD15


def test_layers_are_grouped_by_resolution() -> None:
    layers = select_layers(SD15.layers, STAGES)
    groups = [group_of(layer, layers) for layer in layers]
    assert groups[:3] == ["fine", "medium", "coarse"]
    assert groups[3:] == ["bottleneck", "coarse", "medium", "medium", "fine"]


def test_eased_curves_rise_from_nothing_to_all() -> None:
    curve = CURVES["ease in"]
    assert (curve[0], curve[len(curve) // 2], curve[-1]) == (0.0, 0.5, 1.0)
    assert sorted(curve) == list(curve)
    assert list(at_progress((2.0, 0.0, 1.0), np.array([0.25, 0.5, 0.75]))) == [1, 0, 0.5]


@pytest.mark.parametrize("text", ["", "one", "1,,x", "0.5 -0.1", "3", "nan"])
def test_what_is_no_list_of_strengths_is_refused(text: str) -> None:
    with pytest.raises(DreamCacheError, match="is not a list of strengths: write numbers from 0 to 2"):
        make_curve(LIST, text)
