"""Walk a newcomer's ways from an empty canvas to the demo's picture, and count clicks, scrolls and seconds.

`python3 scripts/release/newcomer.py` walks all of them; with names of ways, only these. `--pack` takes another version
of the pack, such as a worktree of an earlier commit.
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
from harness.front_end import open_front_end  # noqa: E402
from harness.newcomer import PACK, WAYS, Newcomer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", default=list(WAYS), help="which to walk, of: " + ", ".join(WAYS))
    parser.add_argument("--pack", type=Path, default=ROOT, help="folder of the pack (default: this repository)")
    arguments = parser.parse_args()
    for way in arguments.ways:
        # A new server each: what one has computed, the next would find.
        with (
            ComfyUIServer(ENVIRONMENT, {PACK: arguments.pack.resolve()}) as server,
            open_front_end(server) as front_end,
        ):
            front_end.load_blank()
            newcomer, started = Newcomer(front_end), time.monotonic()
            WAYS[way](newcomer)
            seconds = time.monotonic() - started
            print(f"{way}: {newcomer.clicks} clicks, {newcomer.scrolls} scrolls, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
