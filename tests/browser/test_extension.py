"""The pack's extension of the front end, on the canvas and with the Vue renderer: what it says before anything runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import save_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.adapter.provenance import Provenance
from dreamcache.dreamcache_core.figures.attention_sheet import CAPTION as ATTENTION_CAPTION
from dreamcache.dreamcache_core.figures.attention_sheet import SIDE as ATTENTION_SIDE
from dreamcache.dreamcache_core.figures.reference_sheet import CAPTION as REFERENCE_CAPTION
from dreamcache.dreamcache_core.figures.reference_sheet import COLUMNS
from dreamcache.dreamcache_core.figures.sample_sheet import sample_tiles
from dreamcache.dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache, Source
from dreamcache.dreamcache_core.reference.file import save_references
from dreamcache.dreamcache_core.reference.thumbnails import make_thumbnail
from dreamcache.dreamcache_core.unet import TransformerLayer
from harness.comfyui_server import ComfyUIServer
from harness.front_end import ADAPTER, FrontEnd, open_front_end, place_models
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image
from playwright.sync_api import Locator, Route, expect
from safetensors.torch import save_file
from support.graph import adapter_file

VUE = "Comfy.VueNodes.Enabled"
BROKEN = "a_broken_file.safetensors"
SDXL = "sdxl.safetensors"
LOADER, APPLY, ENCODE = "DreamCacheAdapterLoader", "ApplyDreamCache", "DreamCacheEncodeReference"
ONE_NODE = "DreamCacheOneNode"
MESSAGES = ("absent", "put_adapter", "own_attention")
"""What a loader says instead of what its file is."""
REFERENCE_LOADER, STRENGTHS, TRAIN = "DreamCacheLoadReferenceCache", "DreamCacheStrengths", "DreamCacheTrainAdapter"


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
    # With one press, although the front end takes the sizes that it gives to the nodes for a change, once one clicks.
    page.wait_for_timeout(1000)  # Sizes that come later than the command has waited for them would be seen.
    page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.keyboard.press("Control+z")
    page.wait_for_function("!app.graph.nodes.length")
    page.keyboard.press("Control+y")
    page.wait_for_function(is_built)
    values = "type => app.graph.findNodesByType(type)[0].serialize().widgets_values"
    before = page.evaluate(values, APPLY)
    warning = page.get_by_text(f"{ADAPTER} was trained for SD1.x, but {SDXL} is SDXL")
    expect(warning).to_be_hidden()
    page.evaluate("([type, name]) => { app.graph.findNodesByType(type)[0].widgets[0].value = name }", [LOADER, ADAPTER])
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
    expect(page.get_by_text(f"{ADAPTER} was trained for SD1.x, but {SDXL} is SDXL")).to_be_visible()
    expect(facts).to_be_visible()
    # Both have room for the longest that they can say, in every language.
    assert page.locator(".dreamcache-note:not(.dreamcache-problem)").evaluate(_CUT, list(MESSAGES)) == []
    assert page.locator(".dreamcache-problem").evaluate(_CUT, ["misfit"]) == []


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


def test_what_is_dropped_becomes_the_node_that_loads_it_wired_to_the_selected_one(
    server: ComfyUIServer, front_end: FrontEnd, tmp_path: Path
) -> None:
    page = front_end.page
    picture = Image.open(PHOTOGRAPH)
    picture.save(tmp_path / "dropped.png")
    save_references(tmp_path / "my cup.safetensors", _reference(picture))
    front_end.add(APPLY, (700, 150))
    front_end.add(ENCODE, (700, 500))

    front_end.select(APPLY)
    front_end.drop(tmp_path / "my cup.safetensors", (400, 300))
    expect(_note(front_end)).to_contain_text("1 reference for SD1.x, float16")
    expect(_note(front_end)).to_contain_text('64×64 pixels, timestep 1, prompt "", encoded with abababababab')
    thumbnail = _note(front_end).get_by_role("presentation")
    assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") == 160
    assert _note(front_end).evaluate("note => note.scrollHeight <= note.clientHeight")
    front_end.select(ENCODE)
    front_end.drop(tmp_path / "dropped.png", (400, 600), "image/png")
    page.wait_for_function("app.graph.links.size === 2")
    assert set(front_end.links()) == {
        (f"{REFERENCE_LOADER}.reference_cache", f"{APPLY}.reference_cache"),
        ("LoadImage.IMAGE", f"{ENCODE}.image"),
    }
    # Dropped again on a free place, with nothing that waits for it, it is the same file and is wired to nothing.
    front_end.drop(tmp_path / "my cup.safetensors", (1300, 300))
    page.wait_for_function("type => app.graph.findNodesByType(type).length === 2", arg=REFERENCE_LOADER)
    names = page.evaluate(
        "type => app.graph.findNodesByType(type).map((node) => node.widgets[0].value)", REFERENCE_LOADER
    )
    assert names == ["my cup_00001_.safetensors"] * 2
    assert len(front_end.links()) == 2
    (server.base / "models" / "dreamcache_references" / names[0]).unlink()
    front_end.errors = [error for error in front_end.errors if "filename=undefined" not in error]  # Load Image's own.


def test_strengths_are_drawn_and_undone_and_copied_and_reloaded_and_go_into_a_subgraph(front_end: FrontEnd) -> None:
    page = front_end.page
    front_end.add(STRENGTHS, (500, 200))
    before = front_end.prompt()["1"]["inputs"]
    editor = page.locator(".dreamcache-strengths").first
    points = editor.get_by_role("slider", name=re.compile("of sampling"))
    expect(points).to_have_count(5)

    def drawn() -> dict[str, Any]:
        return front_end.prompt()["1"]["inputs"]

    # One sees all of them, and Tab comes to them from left to right.
    places = editor.get_by_role("slider").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect()).map(({ left, right }) => [left, right])"
    )
    assert places == sorted(places)
    right_end = editor.locator("svg").evaluate("picture => picture.getBoundingClientRect().right")
    assert places[-1][1] <= right_end
    is_hidden = "app.graph.nodes[0].widgets.find((widget) => widget.name === 'values').hidden"
    assert page.evaluate(is_hidden)
    # What comes in by a link isn't drawn here.
    front_end.add("PrimitiveFloat", (100, 200))
    page.evaluate("app.graph.nodes[1].connect(0, app.graph.nodes[0], 'fine')")
    linked = editor.get_by_role("slider", name="fine: from the connected input")
    expect(linked).to_have_attribute("aria-disabled", "true")
    linked.press("PageUp")
    page.evaluate("app.graph.remove(app.graph.nodes[1])")
    expect(editor.get_by_role("slider", name="fine")).to_have_attribute("aria-disabled", "false")
    assert drawn() == before

    points.nth(1).hover()  # Which waits until it has come to its place.
    point = points.nth(1).bounding_box()
    assert point
    start = (point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    front_end.drag(start, (start[0], start[1] - 200))
    assert drawn() == {**before, "over_sampling": "list", "values": "1, 2, 1, 1, 1"}
    assert not page.evaluate(is_hidden)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Home")
    expect(points.first).to_have_attribute("aria-valuenow", "0")
    editor.get_by_role("slider", name="fine").press("PageUp")
    assert drawn() == {**before, "fine": 1.25, "over_sampling": "list", "values": "0, 1.95, 1, 1, 1"}

    page.wait_for_function("app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length")
    page.keyboard.press("Control+z")
    page.wait_for_function("app.graph.nodes[0]?.widgets[3].value === 1")
    page.keyboard.press("Control+y")
    page.wait_for_function("app.graph.nodes[0]?.widgets[3].value === 1.25")
    after = drawn()
    assert after["values"] == "0, 1.95, 1, 1, 1"

    # Copied by the keyboard alone, for which the canvas must have the focus.
    front_end.select(STRENGTHS)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+v")
    page.wait_for_function("app.graph.nodes.length === 2")
    assert [node["inputs"] for node in front_end.prompt().values()] == [after, after]
    page.evaluate("app.graph.remove(app.graph.nodes[1])")

    front_end.select(STRENGTHS)
    page.evaluate("app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')")
    page.wait_for_function("app.graph.nodes[0]?.isSubgraphNode?.()")
    (inside,) = (node["inputs"] for node in front_end.prompt().values())
    assert inside == after
    # As a file has it, without what is undefined.
    front_end.load(page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))"))
    (inside,) = (node["inputs"] for node in front_end.prompt().values())
    assert inside == after


def test_dates_and_other_nodes_widgets_are_put_into_the_names_of_saved_files(front_end: FrontEnd) -> None:
    saving = {
        "DreamCacheSaveAdapter": "filename_prefix",
        "DreamCacheSaveReferenceCache": "filename_prefix",
        "DreamCacheSaveTriplet": "folder",
        # ComfyUI's own, whose names these must be like.
        "SaveLatent": "filename_prefix",
    }
    typed = "%date:yyyy-MM-dd%/%EmptyLatentImage.width%_cup"
    front_end.add("EmptyLatentImage", (900, 100))
    for number, (node, name) in enumerate(saving.items()):
        front_end.add(node, (300, 100 + 200 * number))
        set_widget = "([type, name, value]) => { const node = app.graph.nodes.find((one) => one.type === type); "
        set_widget += "node.widgets.find((one) => one.name === name).value = value }"
        front_end.page.evaluate(set_widget, [node, name, typed])
    sent = {node["class_type"]: node["inputs"] for node in front_end.prompt().values()}
    names = [sent[node][name] for node, name in saving.items()]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/512_cup", names[0])
    assert len(set(names)) == 1
    kept = front_end.page.evaluate("app.graph.nodes.flatMap((node) => node.widgets.map((widget) => widget.value))")
    assert kept.count(typed) == len(saving)


@pytest.mark.parametrize("end", ["execution_success", "execution_error", "execution_interrupted"])
def test_what_a_node_says_while_it_runs_goes_when_the_run_ends(front_end: FrontEnd, end: str) -> None:
    front_end.add("DreamCacheCompare", (300, 100))
    said = "app.graph.nodes[0].widgets.some((widget) => String(widget.value).startsWith('image 3 of 12'))"
    hear = "([event, detail]) => app.api.dispatchCustomEvent(event, detail)"
    front_end.page.evaluate(hear, ["progress_text", {"nodeId": "1", "text": "image 3 of 12"}])
    front_end.page.wait_for_function(said)
    # The front end itself shows an error, which it expects whole, and keeps the text.
    error = {"prompt_id": "1", "node_id": "1", "node_type": "", "executed": [], "traceback": []}
    front_end.page.evaluate(hear, [end, error | {"exception_message": "", "exception_type": "", "timestamp": 0}])
    front_end.page.wait_for_function(f"!({said})")


def test_what_nodes_say_stands_out_from_its_background_in_light_and_dark_themes(
    server: ComfyUIServer, front_end: FrontEnd
) -> None:
    page = front_end.page
    _write_training(server, "legible")
    for class_type, place in ((LOADER, (100, 100)), (LOADER, (450, 100)), (STRENGTHS, (850, 100))):
        front_end.add(class_type, place)
    for left in (100, 700):
        front_end.add(TRAIN, (left, 350))
    set_widgets = """values => app.graph.nodes.forEach((node, number) => {
        for (const [name, value] of Object.entries(values[number])) {
            const widget = node.widgets.find((one) => one.name === name)
            widget.value = value
            widget.callback?.(value)
        }
    })"""
    strengths = {"over_sampling": "list", "values": "1, much"}
    adapters = {"adapter_name": BROKEN}, {"adapter_name": ADAPTER}
    page.evaluate(set_widgets, [*adapters, strengths, {"name": "legible"}, {"name": "none"}])
    said = ("is damaged or incomplete", "31,104 parameters", '"1, much" is not a list', "gap 0.5", "Nothing has been")
    for words in said:
        expect(page.locator(".dreamcache").get_by_text(words)).to_be_visible()
    grounds = []
    for theme in ("light", "dark"):
        _set(front_end, "Comfy.ColorPalette", theme)
        texts = page.evaluate(_CONTRASTS)
        assert all(any(words in text for text, *_ in texts) for words in said)
        assert not [(text, contrast) for text, contrast, _ in texts if contrast < 4.5], theme
        grounds.append({ground for *_, ground in texts})
    assert not set.intersection(*grounds)


def test_letters_of_every_sheet_are_at_least_twelve_pixels_high_on_a_fresh_node(
    server: ComfyUIServer, front_end: FrontEnd, tmp_path: Path
) -> None:
    page = front_end.page
    page.evaluate(_WATCH_DRAWING)
    for class_type, sheet in _sheets().items():
        front_end.load_blank()
        page.evaluate("app.canvas.ds.reset()")
        front_end.add(class_type, (500, 50))
        picture = sheet.draw()
        if class_type == TRAIN:
            picture.save(_write_training(server, "legible") / "samples" / "step_000001500.png")
            _show_training(front_end, "legible")
        else:
            picture.save(tmp_path / f"{class_type}.png")
            front_end.show_output(class_type, server.upload_image(tmp_path / f"{class_type}.png"))
        page.wait_for_function(
            f"([type, ...sheet]) => {_LETTERS_ON_SCREEN}(...sheet) >= 12",
            arg=[class_type, *picture.size, sheet.letters],
        )


def test_a_training_is_shown_and_zoomed_and_keeps_its_scale_when_the_page_is_reloaded(
    server: ComfyUIServer, front_end: FrontEnd
) -> None:
    page = front_end.page
    samples = _write_training(server, "shown") / "samples"
    Image.new("RGB", (64, 32), "red").save(samples / "step_000000500.png")
    front_end.add(TRAIN, (500, 50))
    _show_training(front_end, "shown")
    curve, log = page.locator(".dreamcache-curve"), page.get_by_role("button", name="log", exact=True)
    expect(curve).to_have_attribute("aria-label", "loss NaN after step 2,001, mean 1.001")
    expect(page.locator(".dreamcache-training img")).to_have_js_property("naturalWidth", 64)
    expect(curve).to_contain_text("gap 0.5000 ± 0.1000 after step 1,500")
    assert "L" in (curve.locator(".gap").get_attribute("d") or "")

    curve.focus()
    page.keyboard.press("+")
    expect(curve.get_by_text("1,701", exact=True)).to_be_visible()  # 70 % of all steps, from their middle.
    page.keyboard.press("ArrowLeft")
    expect(curve.get_by_text("1,421", exact=True)).to_be_visible()
    page.keyboard.press("0")
    expect(curve.get_by_text("2,001", exact=True)).to_be_visible()
    linear = curve.locator(".single").get_attribute("d")
    page.keyboard.press("l")
    expect(log).to_have_attribute("aria-pressed", "true")
    assert curve.locator(".single").get_attribute("d") != linear

    front_end.reload()
    expect(curve).to_have_attribute("aria-label", "loss NaN after step 2,001, mean 1.001")
    expect(log).to_have_attribute("aria-pressed", "true")
    log.click()
    _show_training(front_end, "none")
    expect(curve).to_contain_text("Nothing has been trained under this name yet.")
    for button in page.locator(".dreamcache-training button").all():
        expect(button).to_be_disabled()


_CUT = """async (note, keys) => {
    const languages = await (await fetch('/i18n')).json()
    const longest = 'v1-5-pruned-emaonly-fp16.safetensors'
    const values = { name: longest, adapter: longest, checkpoint: longest, trained: 'SD1.x', model: 'SDXL' }
    return Object.entries(languages).flatMap(([language, { dreamcache: words }]) => keys.filter((key) => {
        note.textContent = words[key].replace(/\\{(\\w+)\\}/g, (_, value) => values[value])
        return note.scrollHeight > note.clientHeight
    }).map((key) => [language, key]))
}"""
"""The languages and messages that a note has no room for."""
_CONTRASTS = """() => {
    const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
    const mix = (colours) => {
        for (const colour of colours) {
            pen.fillStyle = colour
            pen.fillRect(0, 0, 1, 1)
        }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)
    }
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    const luminance = (rgb) => {
        const [red, green, blue] = rgb.map((part) => linear(part / 255))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue
    }
    const isText = ({ nodeType, data }) => nodeType === Node.TEXT_NODE && data.trim()
    const says = (element) => element.checkVisibility() && !element.disabled && [...element.childNodes].some(isText)
    return [...document.querySelectorAll('.dreamcache, .dreamcache *')].filter(says).map((element) => {
        const under = []
        for (let part = element; part; part = part.parentElement) under.unshift(getComputedStyle(part).backgroundColor)
        const { color, fill } = getComputedStyle(element)
        const [ground, text] = [mix(under), mix([...under, element instanceof SVGElement ? fill : color])]
        const [dark, light] = [luminance(ground), luminance(text)].sort((one, other) => one - other)
        return [element.textContent, (light + 0.05) / (dark + 0.05), `${ground}`]
    })
}"""
"""Of all that our elements say: the text, its contrast as WCAG defines it, and the colour behind it."""
_WATCH_DRAWING = """() => {
    const { drawImage } = CanvasRenderingContext2D.prototype
    CanvasRenderingContext2D.prototype.drawImage = function (image, ...place) {
        const width = place.length > 4 ? place[6] : place[2]
        if (image instanceof HTMLImageElement) window.drawn = [image, width * this.getTransform().a]
        return drawImage.call(this, image, ...place)
    }
}"""
_LETTERS_ON_SCREEN = """((width, height, letters) => {
    const isSheet = (image) => image.naturalWidth === width && image.naturalHeight === height
    const element = [...document.images].find(isSheet)
    const box = element?.getBoundingClientRect()
    if (box) return Math.min(box.width / width, box.height / height) * letters
    app.canvas.setDirty(true, true)
    const [image, shown] = window.drawn ?? []
    return image && isSheet(image) ? (shown / width) * letters : 0
})"""
"""The size of a sheet's letters on the screen: on an element, or as the canvas has drawn it last."""


def _sheets() -> dict[str, TileSheet]:
    """What nodes show: two references, twelve settings, four samples."""
    picture = Image.new("RGB", (64, 64))
    tiles = [Tile("medium\noutput_blocks.8.1", picture)]
    of_references = [Section("reference 1", tiles * 6)] * 2
    of_attention = [Section("reference 1, timestep 500: where the image looks", tiles * 5)] * 8
    return {
        "DreamCachePreviewReferenceCache": TileSheet(REFERENCE_CAPTION, of_references, COLUMNS),
        "DreamCachePreviewAttention": TileSheet(ATTENTION_CAPTION, of_attention, 6, ATTENTION_SIDE),
        "DreamCacheCompare": TileSheet("", [Section("image guidance 2, seed 1", tiles * 3)] * 4, 3),
        TRAIN: sample_tiles(["a cup on a beach"] * 4, [picture] * 4, [picture] * 4, "step 1,500"),
    }


def _write_training(server: ComfyUIServer, name: str) -> Path:
    """A training of 2001 steps, the last of which failed, and two validations. Returns its folder."""
    training = server.base / "output" / "dreamcache_training" / name
    (training / "samples").mkdir(parents=True, exist_ok=True)
    (training / "losses.txt").write_text("".join(f"{1 + 1 / step:.6g}\n" for step in range(1, 2001)) + "nan\n")
    (training / "validations.jsonl").write_text(
        "".join(f'{{"step": {step}, "right": 1, "other": 1.5, "none": 1.2, "error": 0.1}}\n' for step in (500, 1500))
    )
    return training


def _show_training(front_end: FrontEnd, name: str) -> None:
    script = "name => { const [, widget] = app.graph.nodes[0].widgets; widget.value = name; widget.callback() }"
    front_end.page.evaluate(script, name)


def _reference(picture: Image.Image) -> ReferenceCache:
    layers = (TransformerLayer("middle_block.1", 8, 8),)
    source = Source("ab" * 32, patched=False, thumbnails=(make_thumbnail(picture),))
    batch = ReferenceBatch({layers[0].name: torch.ones(1, 8, 1, 1)}, "SD1.x", layers, (8, 8), 1, "", source)
    return ReferenceCache((batch,))


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
