"""How DreamCache works beside other people's packs.

`python3 scripts/benchmarks/neighbours.py FOLDER` runs the graphs of `neighbour_graphs.py` on the demo model, in a
server for each pack of FOLDER (a folder of git checkouts), and writes the table of `web/docs/neighbours.md`, pack by
pack. `--pack NAME`, repeatable: only these; their rows are printed, and the page stays as it is. `--resume`: keep the
page's rows, and run the packs that have none.

Packs need their own packages in the Python that runs ComfyUI: put them where PYTHONPATH points. Some install what they
miss while they load: PIP_NO_INDEX=1 keeps them from it.

Each graph runs without the other node, with it, with both in both orders and twice, and then again without it. An
effect is the mean change that the reference makes in the final latents, as a share of what it makes without the other
node.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.environment import ROOT, Environment, enter

ENVIRONMENT: Environment = enter(pack=False)

import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
from benchmarks.neighbour_graphs import CASES, LOADS_ONLY, Case, Link, Scene  # noqa: E402
from harness.comfyui_server import ComfyUIServer, WorkflowError  # noqa: E402
from harness.markdown_table import markdown_table  # noqa: E402

PAGE = ROOT / "web" / "docs" / "neighbours.md"
PLACE = re.compile(r"(?<=<!-- packs -->\n).*?(?=<!-- end -->)", re.DOTALL)
HEADS = (
    *("pack", "commit", "graph", "effect", "other order", "own attention", "guider", "twice the same"),
    *("plain afterwards", "reference afterwards", "time", "note"),
)
OWN = "none (the model's own attention)"
GIVEN = list(filter(None, [os.environ.get("PYTHONPATH")]))
LOST = 0.05
"""An effect below this is a lost reference."""


@dataclass(eq=False)
class Latents:
    """`values`: (batch, 4, height, width). `seconds`: of the processor that the run took."""

    values: np.ndarray
    seconds: float

    def change(self, other: Latents) -> float:
        return float(np.abs(self.values - other.values).mean())

    def by_eighths(self, other: Latents) -> np.ndarray:
        """The mean change in each eighth of the width."""
        change = np.abs(self.values - other.values).mean(axis=(0, 1, 2))
        return np.array([part.mean() for part in np.array_split(change, 8)])

    def __eq__(self, other: object) -> bool:
        """Whether both are the same to the bit."""
        return isinstance(other, Latents) and np.array_equal(self.values, other.values)


class Neighbour:
    """A server with DreamCache and one pack, and what is drawn there."""

    def __init__(self, server: ComfyUIServer) -> None:
        self._server, self._definitions, self._runs = server, server.object_info(), 0
        self._alone: dict[str, Latents] = {}

    @property
    def log_size(self) -> int:
        return self._server.log.stat().st_size

    def said(self, start: int) -> list[str]:
        """What DreamCache has warned of, from this place in the server's log on."""
        with self._server.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        return list(dict.fromkeys(line.partition("DreamCache: ")[2] for line in lines if "DreamCache: " in line))

    def alone(self, case: Case, **settings: Any) -> Latents:
        """What is drawn without the pack's nodes, the first time it was."""
        key = repr((case.scene, settings))
        if key not in self._alone:
            self._alone[key] = self.draw(case, False, "before", **settings)
        return self._alone[key]

    def draw(self, case: Case, theirs: bool, order: str = "", **settings: Any) -> Latents:
        """Run a graph. `theirs`: with the pack's nodes. `order`: "before", where Apply DreamCache comes before them,
        "after", or none. `settings`: of Apply DreamCache; `guider`: a guider's node, in place of the sampler, and its
        settings.
        """
        self._runs += 1
        scene = Scene(self._server, self._definitions, run=self._runs, **case.scene)
        model, guider = scene.model, settings.pop("guider", None)
        if theirs:
            case.prompts(scene)
        for turn in ("before", "theirs", "after"):
            if turn == "theirs" and theirs and case.patch:
                model = case.patch(scene, model)
            elif turn == order:
                model = apply(scene, model, **settings)
        if guider:
            prompts = {"positive": scene.positive, "negative": scene.negative}
            samples = scene.guided(scene.add(guider[0], model=model, **prompts, cfg=4.0, **guider[1]), model)
        elif theirs and case.sample:
            samples = case.sample(scene, model)
        else:
            samples = scene.sampler("KSampler", model)
        scene.add("SaveLatent", samples=samples, filename_prefix="neighbours")
        before = self._server.cpu_seconds()
        outputs = self._server.run(scene.prompt).outputs
        (saved,) = (latent for output in outputs.values() for latent in output.get("latents", []))
        path = self._server.base / "output" / saved["subfolder"] / saved["filename"]
        return Latents(safetensors.numpy.load_file(path)["latent_tensor"], self._server.cpu_seconds() - before)


def apply(scene: Scene, model: Link, own: bool = False, region: bool = False, **settings: Any) -> Link:
    """Apply DreamCache. `own`: with the model's own attention. `region`: in the left half of the picture."""
    if own:
        settings["adapter"] = scene.add("DreamCacheAdapterLoader", adapter_name=OWN)
    else:
        settings["adapter"] = scene.adapter
    if region:
        black = scene.add("SolidMask", value=0.0, width=scene.width, height=scene.height)
        white = scene.add("SolidMask", value=1.0, width=scene.width // 2, height=scene.height)
        halves = {"destination": black, "source": white, "x": 0, "y": 0, "operation": "add"}
        settings["region"] = scene.add("MaskComposite", **halves)
    return scene.add("ApplyDreamCache", model=model, reference_cache=scene.reference, **settings)


GUIDER = ("DreamCacheGuider", {"image_guidance": 2.0})
CFG_GUIDER: tuple[str, dict[str, Any]] = ("CFGGuider", {})


def measure(neighbour: Neighbour, case: Case) -> list[str]:
    """The cells of a case, from *effect* on."""
    draw = neighbour.draw

    def effect(without: Latents, order: str, **settings: Any) -> tuple[str, Latents]:
        both = draw(case, True, order, **settings)
        share = both.change(without) / neighbour.alone(case, **settings).change(plain)
        return f"{share:.2f}" if share > LOST else f"**{share:.2f}**", both

    def guided() -> str:
        try:
            without = draw(case, True, guider=CFG_GUIDER)
        except WorkflowError:
            return "fails with any guider"
        return effect(without, "before", guider=GUIDER)[0]

    plain, reference = neighbour.alone(case, strength=0.0), neighbour.alone(case)
    try:
        theirs = draw(case, True)
    except WorkflowError as error:
        return [""] * 8 + [f"**fails** without DreamCache, too: {first_line(error)}"]
    plain_again, theirs_again = draw(case, False), draw(case, True)
    shown, both = effect(theirs, "before")
    other_order, notes = "", []
    if case.patch:
        log = neighbour.log_size
        other_order, after = effect(theirs, "after")
        other_order = "the same" if after == both else other_order
        notes += [f"in the other order, the node shows: “{sentence}”" for sentence in neighbour.said(log)]
    again = draw(case, True, "before")
    own = attempt(lambda: effect(theirs, "before", own=True)[0])
    guider = "" if case.sample else attempt(guided)
    if theirs == plain:
        notes.append("by itself, it draws what is drawn without it")
    if theirs_again != theirs:
        notes.append("by itself, it draws something else each time")
    if plain_again != plain:
        notes.append("by itself, it leaves the model changed")
    keeps = theirs_again.seconds < plain_again.seconds / 2
    if keeps:
        notes.append("keeps its results, so that no second run is timed")
    if case.tiles:
        whole = kept(neighbour.alone(case, region=True), reference, plain)
        notes.append(f"a region keeps {kept(draw(case, True, 'before', region=True), both, theirs)}; untiled {whole}")
    return [
        *(shown, other_order, own, guider),
        yes(again == both),
        yes(draw(case, False) == plain),
        yes(draw(case, False, "before") == reference),
        "" if keeps else f"{min(both.seconds, again.seconds) / min(theirs.seconds, theirs_again.seconds):.2f} ×",
        "; ".join([*notes, *filter(None, [case.note])]),
    ]


def kept(in_region: Latents, everywhere: Latents, plain: Latents) -> str:
    """How much of the reference's change stays in the left half, and how much in the right, if its region is the left.
    An eighth of the width at the region's edge, on either side, isn't looked at.
    """
    shares = in_region.by_eighths(plain) / everywhere.by_eighths(plain)
    return f"{shares[:3].mean():.0%} of the change inside it and {shares[5:].mean():.0%} outside"


def attempt(run: Callable[[], str]) -> str:
    try:
        return run()
    except WorkflowError as error:
        return failed(error)


def failed(error: Exception) -> str:
    return f"**fails**: {first_line(error)}"


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:150].replace("|", "/")


def yes(same: bool) -> str:
    return "yes" if same else "**no**"


def measure_pack(folder: Path, cases: Sequence[Case]) -> list[list[str]]:
    """The rows of a pack, which are printed, too."""
    git = ["git", "-C", str(folder), "log", "-1", "--format=%h, %cs"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    others = {name: folder.parent / name for case in cases for name in case.beside}
    rows = []

    def keep(title: str, cells: list[str]) -> None:
        rows.append([folder.name, commit, title, *cells])
        print(*markdown_table(HEADS, [rows[-1]])[2:], sep="\n", flush=True)

    def failure(title: str, text: str) -> None:
        keep(title, [""] * 8 + [text])

    server = ComfyUIServer(ENVIRONMENT, packs={"dreamcache": ROOT, **others, folder.name: folder})
    for case in cases:
        case.files(server.base)
    # Some packs import themselves as custom_nodes.NAME.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(server.base), *GIVEN])
    try:
        with server:
            reason = re.search(rf"Cannot import \S+/{re.escape(folder.name)} module[^:]*: (.*)", server.log.read_text())
            if reason:
                failure("—", f"**doesn't load** in this ComfyUI: {reason[1]}")
                return rows
            neighbour = Neighbour(server)
            for case in cases:
                if case.title == LOADS_ONLY:
                    failure(case.title, "loads")
                    continue
                try:
                    keep(case.title, measure(neighbour, case))
                except (WorkflowError, KeyError, ValueError) as error:
                    failure(case.title, failed(error))
    except (RuntimeError, OSError) as error:
        failure("—", failed(error))
    return rows


def rows_of_page() -> list[list[str]]:
    """The rows that the page has."""
    (block,) = PLACE.findall(PAGE.read_text(encoding="utf-8"))
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def write_page(rows: Sequence[Sequence[str]]) -> None:
    version = re.search(r'"(.*)"', (ENVIRONMENT.comfyui / "comfyui_version.py").read_text())
    measured = f"Measured on {datetime.date.today()} in ComfyUI {version[1] if version else '?'}, on the CPU."
    table = "\n".join(markdown_table(HEADS, rows))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda _: f"\n{measured}\n\n{table}\n\n", text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pack", action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    rows = rows_of_page() if arguments.resume else []
    there = {row[0] for row in rows}
    print(*markdown_table(HEADS), sep="\n", flush=True)
    for pack in arguments.pack or sorted({case.pack for case in CASES} - there, key=str.lower):
        if not (arguments.folder / pack).is_dir():
            print(f"{pack} is not in {arguments.folder}.", file=sys.stderr)
            continue
        rows += measure_pack(arguments.folder / pack, [case for case in CASES if case.pack == pack])
        if not arguments.pack:
            write_page(sorted(rows, key=lambda row: row[0].lower()))


if __name__ == "__main__":
    main()
