"""The templates as they open, in both renderers: nothing overlaps or leaves its group, with and without its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import combinations, product

import pytest
from harness.comfyui_server import ComfyUIServer
from harness.front_end import WORKFLOWS, Box, FrontEnd, open_front_end, place_models

SLACK = 0.5
"""Pixels of the graph that rounding may take."""
# In the Vue renderer, an element is larger than its node where a footer tells of an error.
_BOXES = """() => {
    const { scale, offset } = app.canvas.ds
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    const boxOf = (node) => {
        const element = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`)
        if (!element) return [...node.boundingRect]
        const { x, y, width, height } = element.getBoundingClientRect()
        return [(x - left) / scale - offset[0], (y - top) / scale - offset[1], width / scale, height / scale]
    }
    const { nodes, groups } = app.graph
    const boxes = nodes.map((node) => [node.title, boxOf(node)])
    return [boxes, groups.map((group) => [group.title, [...group.boundingRect]])]
}"""


@pytest.fixture(scope="module")
def opened(server: ComfyUIServer, is_vue: bool) -> Iterator[FrontEnd]:
    with open_front_end(server, (2400, 1500)) as front_end:
        setting = "value => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value)"
        front_end.page.evaluate(setting, is_vue)
        yield front_end
        front_end.page.evaluate(setting, False)


# The canvas draws a node the same whether or not its file is there.
@pytest.mark.parametrize(
    ("is_vue", "has_files"),
    [(False, True), (True, True), (True, False)],
    ids=["canvas", "Vue, with files", "Vue, without files"],
    scope="module",
)
def test_nothing_overlaps_or_leaves_its_group(
    server: ComfyUIServer, front_end: FrontEnd, is_vue: bool, has_files: bool
) -> None:
    models = server.base / "models"
    aside = server.base / "models_aside"
    if has_files:
        place_models(server)
    else:
        models.rename(aside)
        shutil.copytree(aside, models, ignore=lambda folder, names: [name for name in names if "." in name])
    try:
        front_end.page.reload()
        front_end.page.wait_for_function("window.app?.canvas && app.extensionManager.command")
        for name, path in WORKFLOWS.items():
            front_end.load(json.loads(path.read_text(encoding="utf-8")))
            if is_vue:
                front_end.page.wait_for_timeout(500)  # Footers come after the check for missing files.
            nodes, groups = front_end.page.evaluate(_BOXES)
            for (one, its), (other, others) in combinations(nodes, 2):
                assert not _meet(its, others), f"{name}: {one} and {other}"
            for (node, its), (group, around) in product(nodes, groups):
                assert not _meet(its, around) or _holds(around, its), f"{name}: {node} leaves {group}"
    finally:
        if not has_files:
            shutil.rmtree(models)
            aside.rename(models)
    # The front end asks where a missing model can be downloaded, which its own policy forbids; and the browser reports
    # each answer that a file isn't there.
    expected = ("huggingface.co",) if has_files else ("huggingface.co", "/api/dreamcache/")
    front_end.errors = [error for error in front_end.errors if not any(part in error for part in expected)]


def _meet(one: Box, other: Box) -> bool:
    """Whether two boxes cover a common place."""
    return all(
        one[side] + SLACK < other[side] + other[side + 2] and other[side] + SLACK < one[side] + one[side + 2]
        for side in (0, 1)
    )


def _holds(outer: Box, inner: Box) -> bool:
    return all(
        outer[side] <= inner[side] + SLACK and inner[side] + inner[side + 2] <= outer[side] + outer[side + 2] + SLACK
        for side in (0, 1)
    )
