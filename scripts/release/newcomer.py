"""A newcomer's path: clicks, scrolls and seconds from an empty canvas to the demo's picture, in a real browser.

`python3 scripts/release/newcomer.py` walks it twice: by the template browser, and by the link in the README. `--pack`
walks it with another version of the pack, such as a worktree of an earlier commit.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.environment import ROOT, enter

ENVIRONMENT = enter(pack=False)

from harness.comfyui_server import ComfyUIServer  # noqa: E402
from harness.front_end import FrontEnd, open_front_end  # noqa: E402
from harness.workflow_prompt import DEMO  # noqa: E402
from playwright.sync_api import Locator  # noqa: E402

PACK = "dreamcache"
LINK = f"?template=dreamcache_demo&source={PACK}"
SAVED = "app.graph.findNodesByType('SaveImage')[0]?.imgs?.[0]?.naturalWidth"
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
        self.started = time.monotonic()

    def click(self, target: Locator) -> None:
        target.wait_for()
        if not target.evaluate(_IN_SIGHT):
            self.scrolls += 1
            target.scroll_into_view_if_needed()
        self.clicks += 1
        target.click()

    def run(self, way: str) -> None:
        """Press Run, wait for the picture, and say what it took."""
        self.page.wait_for_function("app.graph.findNodesByType('SaveImage').length")
        self.click(self.page.get_by_test_id("queue-button"))
        self.page.wait_for_function(SAVED)
        seconds = time.monotonic() - self.started
        print(f"{way}: {self.clicks} clicks, {self.scrolls} scrolls, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=ROOT, help="folder of the pack (default: this repository)")
    pack = parser.parse_args().pack.resolve()
    for walk in (by_template_browser, by_link):
        # A new server each: what one has computed, the other would find.
        with ComfyUIServer(ENVIRONMENT, {PACK: pack}) as server, open_front_end(server) as front_end:
            walk(front_end, pack)


def by_template_browser(front_end: FrontEnd, pack: Path) -> None:
    front_end.load_blank()
    page, newcomer = front_end.page, Newcomer(front_end)
    newcomer.click(page.get_by_role("button", name="Templates"))
    newcomer.click(page.get_by_role("dialog").get_by_text("DreamCache", exact=True))
    # Earlier versions named its file as links do.
    name = DEMO.stem if (pack / "workflows" / DEMO.name).is_file() else "dreamcache_demo"
    newcomer.click(page.get_by_test_id(f"template-workflow-{name}"))
    newcomer.run("by the template browser")


def by_link(front_end: FrontEnd, _: Path) -> None:
    newcomer = Newcomer(front_end)
    newcomer.clicks += 1
    front_end.page.goto(front_end.page.url.partition("?")[0] + LINK)
    newcomer.run("by the link in the README")


if __name__ == "__main__":
    main()
