"""How DreamCache works beside other people's packs.

`python3 scripts/benchmarks/neighbours.py FOLDER` runs the graphs of `neighbour_graphs.py` on the demo model, in a
server for each pack of FOLDER (a folder of git checkouts; a pack that isn't there is left out), and prints a Markdown
table. Packs need their own packages in the Python that runs ComfyUI: set COMFYUI_PYTHON to one that has them.
`--pack NAME`, repeatable: only these.

Each graph runs in both orders, twice, and then plain and with the reference again. An effect is the mean change that
the reference makes in the final latents, as a share of what it makes without the other node.
"""

from __future__ import annotations

import argparse
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

HEADS = (
    *("pack", "commit", "graph", "effect", "other order", "own attention", "guider", "twice the same"),
    *("plain afterwards", "reference afterwards", "time", "note"),
)
OWN = "none (the model's own attention)"


@dataclass
class Latents:
    """`values`: (batch, 4, height, width). `seconds`: of the processor that the run took."""

    values: np.ndarray
    seconds: float

    def change(self, other: Latents) -> float:
        return float(np.abs(self.values - other.values).mean())

    def by_eighths(self, other: Latents) -> np.ndarray:
        change = np.abs(self.values - other.values).mean(axis=(0, 1, 2))
        return np.array([part.mean() for part in np.array_split(change, 8)])


class Neighbour:
    """A server with DreamCache and one pack, and what is drawn there."""

    def __init__(self, server: ComfyUIServer) -> None:
        self._server, self._definitions, self._runs = server, server.object_info(), 0
        self._alone: dict[str, Latents] = {}

    def alone(self, case: Case, **settings: Any) -> Latents:
        """What is drawn without the pack's nodes, the first time it was."""
        key = repr((case.scene, settings))
        if key not in self._alone:
            self._alone[key] = self.draw(case, False, "before", **settings)
        return self._alone[key]

    def draw(self, case: Case, theirs: bool, order: str = "", **settings: Any) -> Latents:
        """Run a graph. `theirs`: with the pack's nodes. `order`: "before", where Apply DreamCache comes before them,
        "after", or none. `settings`: of Apply DreamCache; `guider`: image guidance of DreamCache Guider.
        """
        self._runs += 1
        scene = Scene(self._server, self._definitions, run=self._runs, **case.scene)
        model, guidance = scene.model, settings.pop("guider", None)
        if theirs:
            case.prompts(scene)
        for turn in ("before", "theirs", "after"):
            if turn == "theirs" and theirs and case.patch:
                model = case.patch(scene, model)
            elif turn == order:
                model = apply(scene, model, **settings)
        if guidance is not None:
            prompts = {"positive": scene.positive, "negative": scene.negative}
            made = scene.add("DreamCacheGuider", model=model, **prompts, cfg=4.0, image_guidance=guidance)
            samples = scene.guided(made, model)
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


def measure(neighbour: Neighbour, case: Case) -> list[str]:
    """The cells of a case, from *effect* on."""
    draw = neighbour.draw

    def effect(theirs: Latents, order: str, **settings: Any) -> tuple[str, Latents]:
        both = draw(case, True, order, **settings)
        alone = neighbour.alone(case, **settings)
        without = theirs if "guider" not in settings else draw(case, True, "before", strength=0.0, **settings)
        return f"{both.change(without) / alone.change(plain):.2f}", both

    plain, reference = neighbour.alone(case, strength=0.0), neighbour.alone(case)
    theirs = draw(case, True)
    shown, both = effect(theirs, "before")
    has_order = case.patch is not None
    other_order, after = effect(theirs, "after") if has_order else ("", both)
    if has_order and np.array_equal(after.values, both.values):
        other_order = "the same"
    again = draw(case, True, "before")
    own = attempt(lambda: effect(theirs, "before", own=True)[0])
    guided = "" if case.sample else attempt(lambda: effect(theirs, "before", guider=2.0)[0])
    note = ""
    if np.array_equal(theirs.values, plain.values):
        note = "changes nothing by itself here"
    elif not np.array_equal(draw(case, True).values, theirs.values):
        note = "draws something else each time, by itself"
    elif case.tiles:
        whole = neighbour.alone(case, region=True).by_eighths(plain)
        tiles = draw(case, True, "before", region=True).by_eighths(theirs)
        largest = np.abs(whole / whole.sum() - tiles / tiles.sum()).max()
        note = f"a region's change by eighths of the width differs by {largest:.1%} at most"
    return [
        *(shown, other_order, own, guided),
        yes(np.array_equal(again.values, both.values)),
        yes(np.array_equal(draw(case, False).values, plain.values)),
        yes(np.array_equal(draw(case, False, "before").values, reference.values)),
        f"{again.seconds / theirs.seconds:.2f} ×",
        note,
    ]


def attempt(run: Callable[[], str]) -> str:
    try:
        return run()
    except WorkflowError as error:
        return f"**fails**: {first_line(error)}"


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:150].replace("|", "/")


def yes(same: bool) -> str:
    return "yes" if same else "**no**"


def measure_pack(folder: Path, cases: Sequence[Case]) -> list[list[str]]:
    git = ["git", "-C", str(folder), "log", "-1", "--format=%h, %cs"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    with ComfyUIServer(ENVIRONMENT, packs={"dreamcache": ROOT, folder.name: folder}) as server:
        loads = "(IMPORT FAILED)" not in server.log.read_text(errors="replace")
        neighbour = Neighbour(server)
        for case in cases:
            cells = [""] * 8 + ["loads"]
            if not loads:
                cells = [""] * 8 + ["**doesn't load** in this ComfyUI"]
            elif case.title != LOADS_ONLY:
                try:
                    cells = measure(neighbour, case)
                except (WorkflowError, KeyError, ValueError) as error:
                    cells = [""] * 8 + [f"**fails**: {first_line(error)}"]
            rows.append([folder.name, commit, case.title, *cells])
            print(*markdown_table(HEADS, [rows[-1]])[2:], sep="\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pack", action="append", default=[])
    arguments = parser.parse_args()
    packs = arguments.pack or sorted({case.pack for case in CASES})
    print(*markdown_table(HEADS), sep="\n", flush=True)
    for pack in packs:
        if (arguments.folder / pack).is_dir():
            measure_pack(arguments.folder / pack, [case for case in CASES if case.pack == pack])


if __name__ == "__main__":
    main()
