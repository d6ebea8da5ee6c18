"""A newcomer's ways from an empty canvas to the demo's picture, with the clicks and scrolls that each takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.front_end import FrontEnd
from playwright.sync_api import Locator

PACK = "dreamcache"
LINK = f"/?template=dreamcache_demo&source={PACK}"
# Whether one sees the middle of it, and nothing lies over it.
_IN_SIGHT = """element => {
    const { left, top, width, height } = element.getBoundingClientRect()
    return element.contains(document.elementFromPoint(left + width / 2, top + height / 2))
}"""


class Newcomer:
    """Someone with a mouse, who counts."""

    def __init__(self, front_end: FrontEnd) -> None:
        self.page = front_end.page
        self.clicks = 0
        self.scrolls = 0

    def click(self, target: Locator) -> None:
        target.wait_for()
        if not target.evaluate(_IN_SIGHT):
            self.scrolls += 1
            target.scroll_into_view_if_needed()
        self.clicks += 1
        target.click()

    def run(self) -> None:
        """Press Run, and wait for the picture."""
        self.page.wait_for_function("window.app?.graph?.findNodesByType('SaveImage').length")
        self.click(self.page.get_by_test_id("queue-button"))
        self.page.wait_for_function("app.graph.findNodesByType('SaveImage')[0].imgs?.[0]?.naturalWidth")


def by_menu(newcomer: Newcomer) -> None:
    newcomer.click(newcomer.page.locator(".comfy-menu-button-wrapper"))
    newcomer.page.get_by_role("menuitem", name="DreamCache", exact=True).hover()
    newcomer.click(newcomer.page.get_by_role("menuitem", name="DreamCache: open the demo"))
    newcomer.run()


def by_template_browser(newcomer: Newcomer) -> None:
    page = newcomer.page
    newcomer.click(page.get_by_role("button", name="Templates"))
    newcomer.click(page.get_by_role("dialog").get_by_text(re.compile(f"^{PACK}$", re.IGNORECASE)))
    # Earlier versions named its file as links do.
    name = re.compile("^template-workflow-(01 .*|dreamcache_demo)$")
    newcomer.click(page.get_by_test_id(name))
    newcomer.run()


def by_link(newcomer: Newcomer) -> None:
    """By the link in the README, by which one sees ComfyUI for the first time."""
    page = newcomer.page
    page.evaluate("app.extensionManager.setting.set('Comfy.TutorialCompleted', false)")
    newcomer.clicks += 1
    page.goto(page.evaluate("location.origin") + LINK)
    newcomer.run()


WAYS: dict[str, Callable[[Newcomer], None]] = {
    "the menu": by_menu,
    "the template browser": by_template_browser,
    "a link": by_link,
}
