"""The pack in ComfyUI's own front end: what someone at the graph finds, drags, opens, runs and reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from dreamcache.dreamcache_core.training.checkpoints import newest_checkpoint
from harness.comfyui_server import ComfyUIServer
from harness.front_end import ADAPTER, WORKFLOWS, Box, FrontEnd, Workflow, open_front_end, place_models
from harness.newcomer import Newcomer, by_menu
from harness.workflow_prompt import DEMO, OWN_ATTENTION, load_prompt
from playwright.sync_api import expect
from support.graph import TRIPLETS, adapter_file, triplets_folder

NODES = {
    "DreamCacheEncodeReference": "DreamCache Encode Reference",
    "DreamCacheAdapterLoader": "DreamCache Adapter Loader",
    "ApplyDreamCache": "Apply DreamCache",
    "DreamCacheDemoModel": "DreamCache Demo Model",
    "DreamCacheStrengths": "DreamCache Strengths",
    "DreamCacheGuider": "DreamCache Guider",
    "DreamCacheOneNode": "DreamCache",
    "DreamCacheCombineReferences": "DreamCache Combine References",
    "DreamCacheSaveReferenceCache": "DreamCache Save Reference Cache",
    "DreamCacheLoadReferenceCache": "DreamCache Load Reference Cache",
    "DreamCachePreviewReferenceCache": "DreamCache Preview Reference Cache",
    "DreamCachePreviewAttention": "DreamCache Preview Attention",
    "DreamCacheCompare": "DreamCache Compare",
    "DreamCachePromptSource": "DreamCache Prompt Source",
    "DreamCacheSaveTriplet": "DreamCache Save Triplet",
    "DreamCacheTrainAdapter": "DreamCache Train Adapter",
    "DreamCacheSaveAdapter": "DreamCache Save Adapter",
    "DreamCacheEvaluate": "DreamCache Evaluate",
}
FREE_PLACE = (800.0, 700.0)
"""Of the window, with no menu over it."""


@pytest.fixture(scope="module")
def opened(server: ComfyUIServer) -> Iterator[FrontEnd]:
    place_models(server)
    adapters = server.base / "models" / "dreamcache"
    shutil.copyfile(adapters / adapter_file(server, "sd15"), adapters / ADAPTER)
    authors = Path(__file__).parents[1] / "support" / "conformance" / "official_format_sd21_mini.pt"
    shutil.copyfile(authors, adapters / "dreamcache_sd21.pt")
    with open_front_end(server) as front_end:
        yield front_end


def test_every_node_and_input_and_output_explains_itself(server: ComfyUIServer) -> None:
    object_info = server.object_info()
    for node in NODES:
        definition = object_info[node]
        inputs = {**definition["input"]["required"], **definition["input"].get("optional", {})}
        assert definition["description"]
        assert all(options.get("tooltip") for _, options in inputs.values()), node
        assert all(definition["output_tooltips"]), node


@pytest.mark.parametrize("node", NODES)
def test_node_search_finds_the_node_by_its_name_and_adds_it(front_end: FrontEnd, node: str) -> None:
    front_end.search_nodes(FREE_PLACE).fill(NODES[node])
    first = front_end.page.get_by_test_id("result-item").first
    expect(first).to_contain_text(NODES[node])
    front_end.page.keyboard.press("Enter")
    expect(first).to_be_hidden()
    # The new node hangs on the mouse until it is put down: elsewhere, or the next click there were a double click.
    front_end.page.mouse.click(400, 300)
    assert front_end.page.evaluate("app.graph.nodes.map((node) => node.type)") == [node]


def test_nodes_are_dragged_and_wired_with_the_mouse(front_end: FrontEnd) -> None:
    front_end.add("DreamCacheAdapterLoader", (150, 200))
    front_end.add("DreamCacheEncodeReference", (150, 400))
    front_end.add("ApplyDreamCache", (600, 200))

    x, y, *_ = front_end.box("ApplyDreamCache")
    start = front_end.title("ApplyDreamCache")
    front_end.drag(start, (start[0] + 100, start[1] + 120))
    assert front_end.box("ApplyDreamCache")[:2] == pytest.approx((x + 100, y + 120), abs=10)  # It snaps to a grid.

    adapter = front_end.slot("DreamCacheAdapterLoader", "output", "adapter")
    cache = front_end.slot("DreamCacheEncodeReference", "output", "reference_cache")
    right = [
        ("DreamCacheAdapterLoader.adapter", "ApplyDreamCache.adapter"),
        ("DreamCacheEncodeReference.reference_cache", "ApplyDreamCache.reference_cache"),
    ]
    for start, wrong in ((adapter, "reference_cache"), (adapter, "model"), (cache, "adapter")):
        front_end.drag(start, front_end.slot("ApplyDreamCache", "input", wrong))
        # Nothing, or in newer front ends the input of the node that it fits.
        assert set(front_end.links()) <= set(right)

    front_end.drag(adapter, front_end.slot("ApplyDreamCache", "input", "adapter"))
    front_end.drag(cache, front_end.slot("ApplyDreamCache", "input", "reference_cache"))
    assert sorted(front_end.links()) == right


def test_an_input_for_another_reference_appears_with_each_and_survives_saving(front_end: FrontEnd) -> None:
    front_end.add("DreamCacheEncodeReference", (150, 400))
    front_end.add("DreamCacheCombineReferences", (600, 200))
    names = [f"references.reference_{number}" for number in (1, 2, 3)]
    for name in names:
        cache = front_end.slot("DreamCacheEncodeReference", "output", "reference_cache")
        front_end.drag(cache, front_end.slot("DreamCacheCombineReferences", "input", name))
    wired = [("DreamCacheEncodeReference.reference_cache", f"DreamCacheCombineReferences.{name}") for name in names]
    assert front_end.links() == wired
    before = front_end.prompt()
    assert set(names) <= set(before["2"]["inputs"])
    front_end.load(front_end.page.evaluate("app.graph.serialize()"))
    assert front_end.prompt() == before
    assert front_end.links() == wired


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_template_browser_opens_the_workflow(server: ComfyUIServer, front_end: FrontEnd, name: str) -> None:
    page = front_end.page
    page.get_by_role("button", name="Templates").click()
    page.get_by_role("dialog").get_by_text("DreamCache", exact=True).click()
    cards = page.get_by_test_id(re.compile("^template-workflow-"))
    expect(cards.first).to_have_attribute("data-testid", f"template-workflow-{DEMO.stem}")
    card = page.get_by_test_id(f"template-workflow-{WORKFLOWS[name].stem}")
    card.scroll_into_view_if_needed()
    # Its own thumbnail, which is fetched; the front end has a picture for templates that have none.
    expect(card.locator("img")).to_have_attribute("src", re.compile("^blob:"))
    card.click()
    expect(card).to_be_hidden()
    page.wait_for_function("app.graph.nodes.length")

    assert front_end.prompt() == load_prompt(WORKFLOWS[name], server.object_info())
    # This is where the front end says that nodes, models or pictures are missing, soon after it opened a workflow.
    expect(page.get_by_test_id("error-overlay")).to_be_hidden()
    # Nodes take the room that they need, which may be more than the file gives them.
    boxes = "kind => app.graph[kind].map((item) => [...item.boundingRect])"
    nodes, groups = (page.evaluate(boxes, kind) for kind in ("nodes", "groups"))
    assert not [pair for pair in combinations(nodes, 2) if _meet(*pair)]
    assert not [
        (node, group) for node, group in product(nodes, groups) if _meet(node, group) and not _holds(group, node)
    ]


def test_templates_for_sd15_open_without_any_adapter(server: ComfyUIServer, front_end: FrontEnd) -> None:
    adapters = server.base / "models" / "dreamcache"
    aside = adapters.rename(server.base / "aside")
    adapters.mkdir()
    page = front_end.page
    read_list = """() => app.graph.findNodesByType('DreamCacheAdapterLoader').map(
        ({ widgets: [list] }) => [list.value, list.options.values])"""
    try:
        page.reload()
        page.wait_for_function("window.app?.canvas && app.extensionManager.command")
        opened = 0
        for path in WORKFLOWS.values():
            workflow = json.loads(path.read_text(encoding="utf-8"))
            models = [model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])]
            if not any("v1-5" in name for name in models):
                continue
            front_end.load(workflow)
            expect(page.get_by_test_id("error-overlay")).to_be_hidden()
            for chosen, listed in page.evaluate(read_list):
                assert (chosen, tuple(listed)) == (OWN_ATTENTION[0], OWN_ATTENTION)
                opened += 1
        assert opened >= 8
    finally:
        adapters.rmdir()
        aside.rename(adapters)
        page.reload()
        page.wait_for_function("window.app?.canvas && app.extensionManager.command")


def test_a_workflow_of_an_earlier_version_opens_with_the_file_that_it_names(
    server: ComfyUIServer, front_end: FrontEnd
) -> None:
    path = Path(__file__).parents[1] / "support" / "earlier_workflows" / "dreamcache_basic.json"
    front_end.load(json.loads(path.read_text(encoding="utf-8")))
    expect(front_end.page.get_by_test_id("error-overlay")).to_be_hidden()
    prompt = front_end.prompt()
    assert prompt == load_prompt(path, server.object_info())
    assert ADAPTER in (node["inputs"].get("adapter_name") for node in prompt.values())


def test_run_shows_a_picture(front_end: FrontEnd) -> None:
    front_end.load(_with_a_miniature_model(WORKFLOWS["dreamcache_basic"]))
    front_end.page.get_by_test_id("queue-button").click()
    front_end.page.wait_for_function("app.graph.findNodesByType('SaveImage')[0].imgs?.[0]?.naturalWidth === 128")


def test_three_clicks_from_an_empty_canvas_draw_the_demos_picture(front_end: FrontEnd) -> None:
    newcomer = Newcomer(front_end)
    by_menu(newcomer)
    assert (newcomer.clicks, newcomer.scrolls) == (3, 0)
    # Encode Reference shows what it has encoded.
    assert front_end.page.locator(".dreamcache-note img").evaluate("image => image.decode().then(() => image.width)")


def test_a_number_beside_run_makes_as_many_triplets_of_other_prompts(
    server: ComfyUIServer, front_end: FrontEnd
) -> None:
    page = front_end.page
    front_end.load(_with_a_miniature_model(WORKFLOWS["dreamcache_make_triplets"]))
    page.get_by_role("textbox", name="Batch Count").fill("3")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("app.graph.findNodesByType('DreamCacheSaveTriplet')[0].imgs?.[0]?.src.includes('00000003')")
    folder = server.base / "output" / "dreamcache_triplets"
    assert len({path.read_text() for path in folder.rglob("*_caption.txt")}) == 3


def test_training_shows_its_loss_and_samples_while_it_runs_and_after_a_reload_and_can_be_cancelled(
    server: ComfyUIServer, front_end: FrontEnd
) -> None:
    page = front_end.page
    triplets_folder(server)
    front_end.load(_with_a_miniature_model(WORKFLOWS["dreamcache_train_adapter"]))
    _set_widgets(front_end, "DreamCacheTrainAdapter", folder=TRIPLETS, name="watched", batch=2, sample_every=5)
    _set_widgets(front_end, "DreamCacheTrainAdapter", resolution=64, precision="float32")
    _set_widgets(front_end, "DreamCacheTrainAdapter", sample_prompts="a cup on a beach")
    page.get_by_role("textbox", name="Batch Count").fill("1")
    page.get_by_test_id("queue-button").click()
    node = "app.graph.findNodesByType('DreamCacheTrainAdapter')[0]"
    curve, samples = page.locator(".dreamcache-curve"), page.locator(".dreamcache-training img")

    def seen(after: int) -> int:
        """The step that the loss curve has come to, as soon as that is a later one."""
        page.wait_for_function(
            """after => document.querySelector('.dreamcache-curve')?.ariaLabel?.match(/step (\\d+)/)?.[1] > after""",
            arg=after,
            timeout=180_000,
        )
        (step,) = re.findall(r"after step (\d+)", curve.get_attribute("aria-label") or "")
        return int(step)

    try:
        seen(after=0)
        expect(samples).to_have_attribute("src", re.compile("/dreamcache/samples/"), timeout=180_000)
        assert samples.evaluate("image => image.decode().then(() => image.naturalWidth)")
        assert page.evaluate(f"{node}.progress") > 0
        progress = page.get_by_text(re.compile(r"step \d+ of 10,000, .* left"))
        expect(progress).to_be_visible()
        front_end.reload()
        seen(after=seen(after=2))
        # The front end's button for it is grey after a reload; its keys do the same.
        page.keyboard.press("Control+Alt+Enter")
        server.wait_until_idle()
        expect(progress).to_be_hidden()
    finally:
        server.interrupt()  # If it failed: all tests after this one would wait.
    assert newest_checkpoint(server.base / "output" / "dreamcache_training" / "watched")


def test_values_survive_saving_and_reloading(front_end: FrontEnd) -> None:
    page = front_end.page
    front_end.add("DreamCacheEncodeReference", (150, 400))
    front_end.add("ApplyDreamCache", (600, 200))
    _set_widgets(front_end, "DreamCacheEncodeReference", timestep=7, seed=2**40, resolution=768)
    _set_widgets(front_end, "ApplyDreamCache", start_percent=0.1, end_percent=0.9, image_guidance=2.5)
    _set_widgets(front_end, "ApplyDreamCache", rows="conditioned")
    # As a user does: a double click on the widget asks for its value.
    page.mouse.dblclick(*front_end.widget("ApplyDreamCache", "strength"))
    value = page.locator(".graphdialog input")
    value.fill("0.65")
    value.press("Enter")
    expect(value).to_be_hidden()
    before = front_end.prompt()
    assert before["2"]["inputs"]["strength"] == 0.65

    page.keyboard.press("Control+s")
    page.get_by_role("dialog").get_by_role("textbox").fill("saved")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.reload()
    page.wait_for_function("window.app?.graph?.nodes.length")
    assert front_end.prompt() == before


def _with_a_miniature_model(path: Path) -> Workflow:
    """A workflow with the miniature in place of the checkpoint, and a picture as small as befits it."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    (checkpoint,) = (node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple")
    checkpoint |= {"type": "MiniatureModel", "inputs": [], "widgets_values": ["sd15", 11, "fixed"]}
    for node in workflow["nodes"]:
        if node["type"] == "LoadBackgroundRemovalModel":
            node |= {"type": "MiniatureBackgroundRemoval", "inputs": [], "widgets_values": []}
    values = {"EmptyLatentImage": {0: 128, 1: 128}, "KSampler": {2: 2}, "DreamCacheEncodeReference": {2: 128}}
    for node in workflow["nodes"]:
        for position, value in values.get(node["type"], {}).items():
            node["widgets_values"][position] = value
    return workflow


def _meet(one: Box, other: Box) -> bool:
    """Whether two boxes cover a common place."""
    return all(one[side] < other[side] + other[side + 2] and other[side] < one[side] + one[side + 2] for side in (0, 1))


def _holds(outer: Box, inner: Box) -> bool:
    return all(
        outer[side] <= inner[side] and inner[side] + inner[side + 2] <= outer[side] + outer[side + 2] for side in (0, 1)
    )


def _set_widgets(front_end: FrontEnd, class_type: str, **values: Any) -> None:
    script = """([type, values]) => {
        const [node] = app.graph.findNodesByType(type)
        for (const widget of node.widgets) {
            if (widget.name in values) widget.value = values[widget.name]
        }
    }"""
    front_end.page.evaluate(script, [class_type, values])
