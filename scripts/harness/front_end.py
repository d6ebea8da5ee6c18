"""ComfyUI's own front end in a browser, on a real server: for tests of what a user sees, and for pictures of it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from harness.comfyui_server import ComfyUIServer, Prompt
from harness.environment import chromium
from harness.workflow_prompt import WORKFLOWS
from playwright.sync_api import ConsoleMessage, Error, Locator, Page, expect, sync_playwright

Workflow = dict[str, Any]
"""A graph as ComfyUI's "Export" saves it, with the nodes' places."""
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x, y, width, height."""

ADAPTER = "dreamcache_sd15.safetensors"
"""The adapter that these workflows load."""
REFERENCES = ("my_subject_00001_.safetensors", "demo_turtle_00001_.safetensors")
"""The references that two of them load."""

# Without a graphics card, and without what Chromium itself would ask the internet for.
_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

# What the front end looks for first, and goes on without: files that a new user has none of, and help in the user's
# own language. The browser reports each as an error.
_ABSENT_FILES = re.compile(r"/favicon\.ico$|/user\.css$|/api/userdata[?/]|/docs/\w+/en\.md$")
# ComfyUI's own, at every start.
_KNOWN_ERRORS = ("ComfyApp graph accessed before initialization",)

# The one button that the front end's focus mode leaves.
_HIDE_MENU_BUTTON = "button[aria-label='Show menu' i] { display: none }"
_SETTINGS_OF_PICTURES = {
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
}


class FrontEnd:
    """The front end's page. Points are of the window unless they are said to be of the graph."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        """Errors of the page, from its console and from exceptions."""
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def load(self, workflow: Workflow) -> None:
        """Open a workflow as if its file were dropped on the canvas, in a tab of its own."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self._draw()

    def load_blank(self) -> None:
        self.load({"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4})

    def reload(self) -> None:
        """Reload the page, once the front end has kept the graph as it is, and wait until the graph is back.

        It keeps a graph that is in no file, half a second after the last change that it noticed.
        """
        script = """() => {
            const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
            tracker.checkState()
            const state = JSON.stringify(JSON.stringify(tracker.activeState)).slice(1, -1)
            return Object.values(localStorage).some((kept) => kept.includes(state))
        }"""
        self.page.wait_for_function(script)
        self.page.reload()
        self.page.wait_for_function("window.app?.graph?.nodes.length")

    def choose_language(self, language: str) -> None:
        """Change the language, and wait until the front end has opened the graph again, which it does last."""
        script = """language => {
            const { loadGraphData, extensionManager: { setting } } = app
            window.reopened = setting.get('Comfy.Locale') === language
            app.loadGraphData = async (...graph) => {
                await loadGraphData.apply(app, graph)
                Object.assign(app, { loadGraphData })
                window.reopened = true
            }
            setting.set('Comfy.Locale', language)
        }"""
        self.page.evaluate(script, language)
        self.page.wait_for_function("window.reopened")

    def prompt(self) -> Prompt:
        """What Run would send to the server."""
        nodes = self.page.evaluate("async () => (await app.graphToPrompt()).output").items()
        return {number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in nodes}

    def search_nodes(self, place: Point) -> Locator:
        """Open the node search with a double click on a free place of the window, and give its field."""
        field = self.page.get_by_role("combobox", name="Add a node")
        for _ in range(3):
            self.page.mouse.dblclick(*place)
            with suppress(Error):  # A busy browser takes the double click for two single ones.
                field.wait_for(timeout=5_000)
                break
        return field

    def add(self, class_type: str, position: Point) -> None:
        """Put a node into the graph, at a place of the graph."""
        script = "([type, pos]) => { const node = LiteGraph.createNode(type); node.pos = pos; app.graph.add(node) }"
        self.page.evaluate(script, [class_type, position])
        self._draw()

    def links(self) -> list[tuple[str, str]]:
        """All links of the graph, as "class.output" and "class.input"."""
        script = """() => [...app.graph.links.values()].map((link) => {
            const [from, to] = [app.graph.getNodeById(link.origin_id), app.graph.getNodeById(link.target_id)]
            const [output, input] = [from.outputs[link.origin_slot], to.inputs[link.target_slot]]
            return [`${from.type}.${output.name}`, `${to.type}.${input.name}`]
        })"""
        return [(start, end) for start, end in self.page.evaluate(script)]

    def box(self, class_type: str) -> Box:
        """What the first node of a class covers, its title included; in the graph."""
        x, y, width, height = self.page.evaluate(
            "type => [...app.graph.findNodesByType(type)[0].getBounding()]", class_type
        )
        return x, y, width, height

    def title(self, class_type: str) -> Point:
        """Where the title of the first node of a class is."""
        x, y, width, _ = self.box(class_type)
        return self.in_window((x + width / 2, y + 15))

    def slot(self, class_type: str, side: Literal["input", "output"], name: str) -> Point:
        """Where a slot of the first node of a class is."""
        script = """([type, side, name]) => {
            const [node] = app.graph.findNodesByType(type)
            const number = node[`${side}s`].findIndex((slot) => slot.name === name)
            return side === 'input' ? [...node.getInputPos(number)] : [...node.getOutputPos(number)]
        }"""
        return self.in_window(self.page.evaluate(script, [class_type, side, name]))

    def widget(self, class_type: str, name: str) -> Point:
        """Where a widget of the first node of a class is."""
        script = """([type, name]) => {
            const [node] = app.graph.findNodesByType(type)
            const widget = node.widgets.find((widget) => widget.name === name)
            return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]
        }"""
        return self.in_window(self.page.evaluate(script, [class_type, name]))

    def in_window(self, point: Point) -> Point:
        """A point of the graph, as a point of the window."""
        script = """([x, y]) => {
            const { left, top } = app.canvas.canvas.getBoundingClientRect()
            const { scale, offset } = app.canvas.ds
            return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale]
        }"""
        x, y = self.page.evaluate(script, point)
        return x, y

    def drag(self, start: Point, end: Point) -> None:
        """Drag with the mouse, in steps, as the canvas follows no jump."""
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=8)
        self.page.mouse.up()

    def drop(self, path: Path, place: Point, kind: str = "") -> None:
        """Drop a file, of a MIME type, on a place of the window as if it came from a file manager."""
        script = """([content, name, type, clientX, clientY]) => {
            const dataTransfer = new DataTransfer()
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
            dataTransfer.items.add(new File([bytes], name, { type }))
            for (const event of ['dragover', 'drop']) {
                const options = { bubbles: true, cancelable: true, dataTransfer, clientX, clientY }
                document.elementFromPoint(clientX, clientY).dispatchEvent(new DragEvent(event, options))
            }
        }"""
        content = base64.b64encode(path.read_bytes()).decode()
        # Older front ends cover the page while they take the file before.
        self.page.wait_for_function("!document.querySelector('.p-blockui-mask')")
        self.page.evaluate(script, [content, path.name, kind, *place])

    def select(self, class_type: str) -> None:
        """Select the first node of a class, and no other."""
        self.page.evaluate("type => app.canvas.selectItems([app.graph.findNodesByType(type)[0]])", class_type)

    def hide_menus(self) -> None:
        """Leave nothing but the graph in the window."""
        self.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        self.page.add_style_tag(content=_HIDE_MENU_BUTTON)
        for setting, value in _SETTINGS_OF_PICTURES.items():
            self.page.evaluate("([id, value]) => app.extensionManager.setting.set(id, value)", [setting, value])

    def show_output(self, class_type: str, image: str) -> None:
        """Show a picture of the input folder on nodes of a class, as if they had made it."""
        script = """([type, filename]) => app.graph.findNodesByType(type).forEach((node) => {
            const output = { images: [{ filename, subfolder: '', type: 'input' }] }
            app.api.dispatchCustomEvent('executed', { node: `${node.id}`, display_node: `${node.id}`, output })
        })"""
        self.page.evaluate(script, [class_type, image])

    def picture(self, box: Box, width: int) -> bytes:
        """A box of the graph as a PNG, `width` pixels wide. Makes the window as large as that."""
        x, y, box_width, box_height = box
        scale = width / box_width
        self.page.set_viewport_size({"width": width, "height": round(box_height * scale)})
        self.page.wait_for_function(
            "app.graph.findNodesByType('LoadImage').every((node) => node.imgs?.every((image) => image.complete))"
        )
        self._draw(5)  # The canvas takes the window's new size.
        script = "([x, y, scale]) => Object.assign(app.canvas.ds, { scale, offset: [-x, -y] })"
        self.page.evaluate(script, [x, y, scale])
        self._draw(20)  # The prompts and notes, which lie above the canvas, follow it.
        return self.page.screenshot()

    def _draw(self, frames: int = 2) -> None:
        """Let the canvas be drawn. Before that it doesn't know where a new node is."""
        script = """async (frames) => {
            app.canvas.setDirty(true, true)
            for (; frames; frames--) await new Promise(requestAnimationFrame)
        }"""
        self.page.evaluate(script, frames)

    def _hear(self, message: ConsoleMessage) -> None:
        url = message.location.get("url", "")
        absent = "404" in message.text and _ABSENT_FILES.search(url)
        if message.type == "error" and not absent and message.text not in _KNOWN_ERRORS:
            self.errors.append(f"{message.text} ({url})")


@contextmanager
def open_front_end(server: ComfyUIServer, size: tuple[int, int] = (1600, 900)) -> Iterator[FrontEnd]:
    """The front end in a window of `size`, as a newcomer sees it, with nothing on the canvas."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, locale="en-US", reduced_motion="reduce")
        front_end = FrontEnd(page)
        # A machine that does other things too takes its time.
        page.set_default_timeout(90_000)
        expect.set_options(timeout=30_000)
        # A newcomer, whom the front end greets with an empty canvas and its template browser. Others get a graph of
        # large models that aren't there, and it asks the internet for their sizes.
        page.request.post(f"{server.url}/api/settings", data={"Comfy.TutorialCompleted": False})
        page.goto(server.url)
        page.get_by_test_id("template-workflows-content").wait_for()
        page.keyboard.press("Escape")
        try:
            page.get_by_test_id("template-workflows-content").wait_for(state="hidden", timeout=10_000)
        except Error:  # Older ones have a button only, which a message may cover by now.
            page.get_by_role("dialog").get_by_role("button", name=re.compile("^close", re.IGNORECASE)).press("Enter")
            page.get_by_test_id("template-workflows-content").wait_for(state="hidden")
        yield front_end
        browser.close()


def place_models(server: ComfyUIServer) -> None:
    """Empty files under the names that the workflows load: the front end warns of those that it doesn't find."""
    models = [{"directory": "dreamcache", "name": ADAPTER}]
    models += [{"directory": "dreamcache_references", "name": name} for name in REFERENCES]
    for path in WORKFLOWS.values():
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            models += node["properties"].get("models", [])
    for model in models:
        file = server.base / "models" / model["directory"] / model["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
