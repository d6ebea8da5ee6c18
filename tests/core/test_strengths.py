"""Strengths: groups of layers, curves over the steps, and lists of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from dreamcache.dreamcache_core.adapter.strengths import CURVES, LIST, at_progress, make_curve
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.unet import (
    DEFAULT_STAGES,
    STAGES,
    Group,
    TransformerLayer,
    group_of,
    select_layers,
)

SD = {"fine": ((1, 2), (9, 10, 11)), "medium": ((4, 5), (6, 7, 8)), "coarse": ((7, 8), (3, 4, 5))}
SDXL = {"fine": ((4, 5), (3, 4, 5)), "coarse": ((7, 8), (0, 1, 2))}


@pytest.mark.parametrize(
    ("groups", "channels"),
    [
        pytest.param(SD, {"fine": 320, "medium": 640, "coarse": 1280}, id="SD1.x and SD2.x"),
        pytest.param(SDXL, {"fine": 640, "coarse": 1280}, id="SDXL"),
        pytest.param(SD, {"fine": 64, "medium": 64, "coarse": 128}, id="demo"),
    ],
)
def test_layers_are_grouped_by_resolution(
    groups: dict[Group, tuple[tuple[int, ...], tuple[int, ...]]], channels: dict[Group, int]
) -> None:
    """`groups`: group → its transformers' input blocks and output blocks, of the whole U-Net."""
    expected: dict[TransformerLayer, Group] = {TransformerLayer("middle_block.1", channels["coarse"], 8): "bottleneck"}
    for group, (encoder, decoder) in groups.items():
        names = [f"input_blocks.{block}.1" for block in encoder] + [f"output_blocks.{block}.1" for block in decoder]
        expected |= {TransformerLayer(name, channels[group], 8): group for name in names}
    structure = sorted(expected, key=lambda layer: (STAGES.index(layer.stage), int(layer.name.split(".")[1])))
    cached, adapted = (select_layers(structure, stages) for stages in (STAGES, DEFAULT_STAGES))
    # The model's own attention can be on all layers, also on those that aren't cached.
    assert {layer: group_of(layer, cached) for layer in expected} == expected
    assert all(group_of(layer, adapted) == expected[layer] for layer in adapted)


def test_eased_curves_rise_from_nothing_to_all() -> None:
    curve = CURVES["ease in"]
    assert (curve[0], curve[len(curve) // 2], curve[-1]) == (0.0, 0.5, 1.0)
    assert sorted(curve) == list(curve)
    assert list(at_progress((2.0, 0.0, 1.0), np.array([0.25, 0.5, 0.75]))) == [1, 0, 0.5]


@pytest.mark.parametrize("text", ["", "one", "1,,x", "0.5 -0.1", "3", "nan"])
def test_what_is_no_list_of_strengths_is_refused(text: str) -> None:
    with pytest.raises(DreamCacheError, match="is not a list of strengths: write numbers from 0 to 2"):
        make_curve(LIST, text)
