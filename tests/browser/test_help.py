"""The help pages: each node has one in English and in Chinese, and all that is in them can be reached and seen.

The front end fetches `docs/<node>/<locale>.md`, then `docs/<node>.md`. It resolves pictures against `docs/`, even for
a page in a folder, and leaves links as they are: a path without a host would open ComfyUI itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.comfyui_server import ComfyUIServer
from harness.environment import ROOT
from harness.front_end import FrontEnd, open_front_end
from playwright.sync_api import expect

DOCS = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
GUIDES = sorted(path for path in DOCS.glob("*.md") if path.stem not in NODES)
"""Pages that are read in the repository, where links go from page to page."""


def page_of(node: str, language: str) -> Path:
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


PAGES = [page_of(node, language) for language in LANGUAGES for node in NODES]


@pytest.fixture(scope="module")
def opened(server: ComfyUIServer) -> Iterator[FrontEnd]:
    with open_front_end(server) as front_end:
        yield front_end


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_page_and_no_page_is_of_another(language: str) -> None:
    pages = set(DOCS.glob("[AD]*.md") if language == "en" else DOCS.glob(f"*/{language}.md"))
    assert pages == {page_of(node, language) for node in NODES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_and_pictures_of_a_help_page_work_in_the_panel(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    assert all((DOCS / picture).is_file() for picture in pictures), pictures
    assert all(link.startswith("https://") for link in _links(text))
    assert not re.search(r"web/docs|\w+\.md\b", text), "a path that the panel can't open"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_and_pictures_of_a_guide_work_in_the_repository(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = [*re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text), *_links(text)]
    absent = [target for target in targets if ":" not in target and not (DOCS / target.partition("#")[0]).is_file()]
    assert not absent


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_help_page_has_lists_and_no_tables(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith(("|", "    ", "```"))]


def test_the_help_panel_shows_every_page_within_its_width(front_end: FrontEnd) -> None:
    page = front_end.page
    for number, node in enumerate(NODES):
        front_end.add(node, (100 + 280 * (number % 3), 150 + 110 * (number // 3)))
    # So that no node, and no toolbox of the selected one, covers another's title.
    page.evaluate("app.graph.nodes.forEach((node) => node.collapse())")
    try:
        for language in LANGUAGES:
            _check_panel(front_end, language)
    finally:
        front_end.choose_language("en")


def _check_panel(front_end: FrontEnd, language: str) -> None:
    page, help_page = front_end.page, front_end.page.locator(".node-help-content")
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    front_end.choose_language(language)
    page.mouse.click(*front_end.title(next(iter(NODES))))
    page.get_by_test_id("info-button").click()
    for node in reversed(NODES):
        page.mouse.click(*front_end.title(node))
        expect(help_page.get_by_role("heading", level=1)).to_have_text(texts[node]["display_name"])
        inputs = "type => app.graph.findNodesByType(type)[0].inputs.map((input) => input.name)"
        for name in page.evaluate(inputs, node):
            expect(help_page.get_by_role("listitem").get_by_text(name, exact=True).first).to_be_visible()
        picture = help_page.locator("img").first
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("picture => picture.naturalWidth")
        assert not help_page.evaluate(_TOO_WIDE), node
        assert "*" not in help_page.inner_text(), node


_TOO_WIDE = """panel => {
    const right = panel.getBoundingClientRect().right
    return [...panel.querySelectorAll('*')]
        .filter((part) => part.getBoundingClientRect().right > right + 1)
        .map((part) => part.textContent.slice(0, 60))
}"""
"""The texts of the parts that reach over the panel's edge."""


def _links(text: str) -> list[str]:
    return re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
