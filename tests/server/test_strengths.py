"""DreamCache Strengths: which layers a reference enters at, and how much of it as sampling goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.graph import Scene, difference, failure

GROUPS = ("bottleneck", "coarse", "medium", "fine")


def drawn(server, *, apply: dict[str, Any] | None = None, steps: int = 4, **settings: Any) -> torch.Tensor:
    """With a DreamCache Strengths of these settings, if there are any. `curve`: of a Curve Editor."""
    scene = Scene(server)
    inputs = dict(apply or {})
    if settings:
        if "curve" in settings:
            settings["curve"] = scene.add("CurveEditor", curve=settings["curve"])
        defaults = {**dict.fromkeys(GROUPS, 1.0), "over_sampling": "constant", "values": ""}
        inputs["strengths"] = scene.add("DreamCacheStrengths", **{**defaults, **settings})
    return scene.sample(scene.apply(scene.model, **inputs), steps=steps)


@pytest.fixture(scope="module")
def plain(server) -> torch.Tensor:
    return drawn(server, apply={"strength": 0.0})


@pytest.fixture(scope="module")
def whole(server) -> torch.Tensor:
    return drawn(server)


def test_as_it_comes_it_changes_nothing(server, whole: torch.Tensor) -> None:
    assert torch.equal(drawn(server, over_sampling="constant"), whole)


def test_each_group_has_a_factor_of_its_own(server, plain: torch.Tensor, whole: torch.Tensor) -> None:
    nothing: dict[str, Any] = dict.fromkeys(GROUPS, 0.0)
    half: dict[str, Any] = dict.fromkeys(GROUPS, 0.5)
    pictures = [plain, whole, *(drawn(server, **{**nothing, group: 1.0}) for group in GROUPS)]
    assert all(difference(one, other) > 1e-3 for n, one in enumerate(pictures) for other in pictures[:n])
    assert torch.equal(drawn(server, **nothing, apply={"image_guidance": 3.0}), plain)
    assert torch.equal(drawn(server, **half), drawn(server, apply={"strength": 0.5}))


def test_a_curve_is_followed_in_the_course_of_sampling(server, whole: torch.Tensor) -> None:
    # 4 steps are evaluated at 0, 33, 67 and 100 %.
    first_half = drawn(server, apply={"end_percent": 0.5})
    assert torch.equal(drawn(server, over_sampling="list", values="1 1 1 1 0 0 0"), first_half)
    points = [[0.0, 1.0], [0.45, 1.0], [0.55, 0.0], [1.0, 0.0]]
    assert torch.equal(drawn(server, curve={"points": points, "interpolation": "linear"}), first_half)
    assert torch.equal(drawn(server, over_sampling="list", values="1"), whole)
    for number, curve in enumerate(("ease in", "ease out")):
        assert difference(drawn(server, over_sampling=curve), whole) > 1e-3
        # The first step is at the very beginning.
        first = drawn(server, over_sampling=curve, steps=1)
        assert torch.equal(first, drawn(server, apply={"strength": float(number)}, steps=1))


def test_a_wrong_list_is_told_of_at_its_node(server) -> None:
    message = failure(lambda: drawn(server, over_sampling="list", values="strong, weak"))
    assert message.startswith('DreamCacheStrengths: "strong, weak" is not a list of strengths')


def test_unconditioned_rows_leave_the_positive_prompt_as_it_was(server) -> None:
    # At a CFG of 1 only the positive prompt counts, and at 0 only the negative.
    def of(cfg: float, **settings: Any) -> torch.Tensor:
        scene = Scene(server)
        return scene.sample(scene.apply(scene.model, **settings), cfg=cfg)

    assert torch.equal(of(1.0, rows="unconditioned"), of(1.0, strength=0.0))
    # But for how the CPU splits larger matrices, of more rows that read.
    both = of(0.0)
    torch.testing.assert_close(of(0.0, rows="unconditioned"), both, rtol=1e-4, atol=1e-4 * float(both.abs().max()))
    assert of(4.0, rows="unconditioned", image_guidance=2.0).isfinite().all()
