"""The pack's extension of the front end, on the canvas and with the Vue renderer: what one is told before one runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from comfyui_server import ComfyUIServer
from dreamcache.dreamcache_core import Adapter, Provenance, TransformerLayer, save_adapter
from front_end import ADAPTER, FrontEnd, open_front_end, place_models
from graph import adapter_file
from playwright.sync_api import Locator, Route, expect
from safetensors.torch import save_file

VUE = "Comfy.VueNodes.Enabled"
BROKEN = "a_broken_file.safetensors"
SDXL = "sdxl.safetensors"
LOADER, APPLY, ONE_NODE = "DreamCacheAdapterLoader", "ApplyDreamCache", "DreamCacheOneNode"


@pytest.fixture(scope="module", params=["canvas", "Vue"])
def opened(server: ComfyUIServer, request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    place_models(server)
    server.upload_image(server.base / "input" / "example.png")
    adapters = server.base / "models" / "dreamcache"
    layers = [TransformerLayer("middle_block.1", 64, 8), TransformerLayer("output_blocks.4.1", 32, 8)]
    save_adapter(adapters / ADAPTER, Adapter(layers, "SD1.x", provenance=[Provenance("0" * 64, 100, 4, 300)]))
    (adapters / BROKEN).write_bytes(b"nonsense")
    network = "model.diffusion_model.input_blocks"
    tensors = {f"{network}.0.0.weight": torch.zeros(320, 4, 3, 3)}
    tensors[f"{network}.4.1.transformer_blocks.0.attn2.to_k.weight"] = torch.zeros(640, 2048)
    save_file(tensors, server.base / "models" / "checkpoints" / SDXL)
    with open_front_end(server) as front_end:
        _set(front_end, VUE, request.param == "Vue")
        yield front_end
        _set(front_end, VUE, False)
    (adapters / BROKEN).unlink()
    (server.base / "models" / "checkpoints" / SDXL).unlink()
    shutil.copyfile(adapters / adapter_file(server, "sd15"), adapters / ADAPTER)


@pytest.fixture
def front_end(opened: FrontEnd) -> Iterator[FrontEnd]:
    """An empty graph. A test fails if the page complains of anything in the meantime."""
    opened.load_blank()
    yield opened
    errors = list(opened.errors)
    opened.errors.clear()
    assert not errors


def test_adapter_loader_says_what_its_file_is_and_which_cannot_be_used(front_end: FrontEnd) -> None:
    page = front_end.page
    front_end.add(LOADER, (500, 300))
    _choose(front_end, ADAPTER)
    expect(_note(front_end)).to_contain_text("SD1.x · 2 layers · 31,104 parameters · 0.1 MB")
    expect(_note(front_end)).to_contain_text("trained 100 steps of 4 on 300 triplets")

    x, y = front_end.widget(LOADER, "adapter_name")
    if _is_vue(front_end):
        page.get_by_role("combobox", name="adapter_name").click()
    else:
        page.mouse.click(x, y)
    page.get_by_text(f"⚠ {BROKEN}: {BROKEN} cannot be read").last.click()
    expect(_note(front_end)).to_contain_text("is damaged or incomplete")
    assert front_end.prompt()["1"]["inputs"] == {"adapter_name": BROKEN}


def test_the_basic_graph_is_built_and_warns_of_a_misfit_and_saves_no_notes(front_end: FrontEnd) -> None:
    page = front_end.page
    is_built = "app.graph.nodes.length === 12 && app.graph.links.size === 16"
    page.evaluate("app.extensionManager.command.execute('DreamCache.BuildBasicGraph')")
    page.wait_for_function(is_built)
    page.keyboard.press("Control+z")
    page.wait_for_function("!app.graph.nodes.length")
    page.keyboard.press("Control+y")
    page.wait_for_function(is_built)
    values = "type => app.graph.findNodesByType(type)[0].serialize().widgets_values"
    before = page.evaluate(values, APPLY)
    warning = page.get_by_text(f"{ADAPTER} was trained for SD1.x, and {SDXL} is SDXL")
    expect(warning).to_be_hidden()
    for checkpoint, is_misfit in ((SDXL, True), ("v1-5-pruned-emaonly-fp16.safetensors", False)):
        page.evaluate(
            "name => { app.graph.findNodesByType('CheckpointLoaderSimple')[0].widgets[0].value = name }", checkpoint
        )
        page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
        expect(warning).to_be_visible(visible=is_misfit)
        assert page.evaluate(values, APPLY) == before
    assert page.evaluate(values, LOADER) == [ADAPTER]


def test_the_one_node_says_what_its_file_is_and_warns_of_a_misfit(front_end: FrontEnd) -> None:
    page = front_end.page
    front_end.add("CheckpointLoaderSimple", (100, 300))
    front_end.add(ONE_NODE, (500, 300))
    _choose(front_end, ADAPTER, ONE_NODE)
    facts = page.get_by_text("SD1.x · 2 layers · 31,104 parameters")
    expect(facts).to_be_visible()
    script = """([type, name]) => {
        const [checkpoint] = app.graph.findNodesByType('CheckpointLoaderSimple')
        checkpoint.widgets[0].value = name
        checkpoint.connect(0, app.graph.findNodesByType(type)[0], 'model')
        app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
    }"""
    page.evaluate(script, [ONE_NODE, SDXL])
    expect(page.get_by_text(f"{ADAPTER} was trained for SD1.x, and {SDXL} is SDXL")).to_be_visible()
    expect(facts).to_be_visible()


def test_a_server_that_is_slow_or_gone_leaves_a_working_node(front_end: FrontEnd) -> None:
    page = front_end.page
    waiting: list[Route] = []
    page.route("**/dreamcache/adapters/*", lambda route: waiting.append(route))
    try:
        front_end.add(LOADER, (500, 300))
        _choose(front_end, ADAPTER)
        expect(_note(front_end)).to_have_text(f"Reading {ADAPTER} …")
        for route in waiting:
            route.abort()
        expect(_note(front_end)).to_have_text("The server doesn't answer.")
    finally:
        page.unroute("**/dreamcache/adapters/*")
    assert front_end.prompt()["1"]["inputs"] == {"adapter_name": ADAPTER}
    assert all("/dreamcache/adapters/" in error for error in front_end.errors)
    front_end.errors.clear()  # The browser's own, of what was aborted.


def test_without_adapters_the_node_says_what_to_do(front_end: FrontEnd) -> None:
    page = front_end.page

    def without_adapters(route: Route) -> None:
        answer = route.fetch()
        definitions = answer.json()
        definitions[LOADER]["input"]["required"]["adapter_name"][1]["options"] = []
        route.fulfill(response=answer, json=definitions)

    page.route("**/object_info", without_adapters)
    try:
        page.reload()
        page.wait_for_function("window.app?.canvas && app.extensionManager.command")
        front_end.load_blank()
        front_end.add(LOADER, (500, 300))
        expect(_note(front_end)).to_contain_text("models/dreamcache folder, press R")
        label = "app.graph.nodes[0].widgets[0].options.getOptionLabel(null)"
        assert page.evaluate(label) == "no adapter"
        if _is_vue(front_end):
            expect(page.get_by_role("combobox", name="adapter_name")).to_have_text("no adapter")
    finally:
        page.unroute("**/object_info")
        page.reload()
        page.wait_for_function("window.app?.canvas && app.extensionManager.command")


def test_slots_keep_their_colours_when_the_theme_changes(front_end: FrontEnd) -> None:
    page = front_end.page
    colours = """type => [
        LGraphCanvas.link_type_colors[type],
        getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`),
    ]"""
    types = ("DREAMCACHE_ADAPTER", "DREAMCACHE_REFERENCE_CACHE", "DREAMCACHE_STRENGTHS")
    before = [page.evaluate(colours, type_) for type_ in types]
    assert len({colour for pair in before for colour in pair}) == len(types)
    for theme in ("light", "dark"):
        _set(front_end, "Comfy.ColorPalette", theme)
        assert [page.evaluate(colours, type_) for type_ in types] == before


def _note(front_end: FrontEnd) -> Locator:
    return front_end.page.locator(".dreamcache-note")


def _choose(front_end: FrontEnd, adapter: str, loader: str = LOADER) -> None:
    """As the lists of both renderers do."""
    script = """([type, name]) => {
        const [widget] = app.graph.findNodesByType(type)[0].widgets
        widget.value = name
        widget.callback(name)
    }"""
    front_end.page.evaluate(script, [loader, adapter])


def _is_vue(front_end: FrontEnd) -> bool:
    return front_end.page.evaluate("id => app.extensionManager.setting.get(id)", VUE)


def _set(front_end: FrontEnd, setting: str, value: object) -> None:
    front_end.page.evaluate("([id, value]) => app.extensionManager.setting.set(id, value)", [setting, value])
