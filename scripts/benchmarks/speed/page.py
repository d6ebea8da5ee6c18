"""The results as a page of tables, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.markdown_table import markdown_table
from PIL import Image, ImageDraw, ImageFont

from .measuring import StepCost
from .variants import CONDITIONED, GUIDED, IPADAPTER, IPADAPTER_PLUS, PLAIN, READING

PLOT = "images/speed.png"
ENCODING, VISION = "Encode Reference", "CLIP ViT-H"
"""What looks at a picture, for DreamCache and for an IP-Adapter."""
PICTURE_SIZE, PICTURE_STEPS = 512, 100
"""Of the paper's comparison of methods."""
_LOOKING = {READING: ENCODING, CONDITIONED: ENCODING, GUIDED: ENCODING, IPADAPTER: VISION, IPADAPTER_PLUS: VISION}

_BAR, _FLOOR = "#1f5fbf", "#d9480f"
_LABELS, _WIDTH, _LINE, _MARGIN, _FONT_SIZE = 190, 720, 30, 20, 15


@dataclass(frozen=True)
class Start:
    """What a way from a picture to the first step costs. `first`: seconds with all that must be loaded, `again`: of the
    next picture. `operations`: of either; None where there are hardly any.
    """

    way: str
    first: float
    again: float
    operations: int | None


_NO_LOOK = Start("", 0.0, 0.0, None)
Operations = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True)
class Results:
    """`machine`: in words. `operations`: variant → size → of a step of a batch of 1. `starts`: ways from a picture to
    the first step. `seconds`, `bytes`: what else was measured, by what it is of. `demo_steps`, `demo_operations`: of
    the model that comes with the nodes.
    """

    machine: str
    operations: Operations
    steps: Sequence[StepCost]
    starts: Sequence[Start]
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    demo_steps: Sequence[StepCost]
    demo_operations: Operations


def read(path: Path) -> Results:
    """Results as `asdict` had them in a JSON file."""
    results = json.loads(path.read_text())
    for name in ("operations", "demo_operations"):
        # JSON has no numbers for keys.
        for variant, of_sizes in results[name].items():
            results[name][variant] = {int(size): count for size, count in of_sizes.items()}
    for name, kind in (("steps", StepCost), ("demo_steps", StepCost), ("starts", Start)):
        results[name] = [kind(**fields) for fields in results[name]]
    return Results(**results)


def floor(operations: Operations, variant: str, size: int) -> float:
    """What a variant's operations would take, in steps of the plain model."""
    return operations[variant][size] / operations[PLAIN][size]


def markdown(results: Results) -> str:
    """The page. Numbers of operations count two for each multiplication."""
    return "\n".join(
        [
            "# Speed",
            "",
            f"Measured by `python3 scripts/benchmarks/benchmark.py`: {results.machine}. SD1.5 at full size with "
            "generated weights, CFG on: two rows a picture.",
            "",
            f"![Steps of each variant, as measured and as counted]({PLOT})",
            "",
            "## A step",
            "",
            "*×* is to a step of the plain model measured beside it, the median of such pairs (on a CPU, both take "
            "turns layer by layer, on one core, and keep memory that is free). The *floor* is the same of the "
            "operations that both must do. *Once* is what a run takes beside its steps: keys and values of "
            "the reference. *Memory* is what the peak of a step holds more than the plain model's.",
            "",
            *_step_table(results.steps, results.operations),
            "",
            "`straightforward` is DreamCache as the paper writes it down: cached features projected again at every "
            "step, weights as they were trained. `IP-Adapter` is its mechanism, 16 cross-attentions over image tokens "
            "beside those over the prompt, with nothing around it."
            + (" `IPAdapter_plus` is the node pack itself, with 4." if IPADAPTER_PLUS in results.operations else ""),
            "",
            "`own attention` needs no adapter, see [its page](own_attention.md). *Once* is its caching pass at one "
            "noise level; the first run with a reference has one at every step. `reference-only` computes the same "
            "without a cache: the reference runs through the U-Net at every step, in as many rows as the picture.",
            "",
            "## Operations of a step",
            "",
            "In TFLOP, of a batch of 1 with both prompts; larger batches take as many times more.",
            "",
            *markdown_table(["", *(f"{size}²" for size in _sizes(results))], _operation_rows(results)),
            "",
            "## A step of the demo model",
            "",
            "So small a network takes most of its time to be told what to do, not to do it: this is what the nodes "
            "themselves add to a step.",
            "",
            *_step_table(results.demo_steps, results.demo_operations),
            "",
            "## From a picture to the first step",
            "",
            "In steps of the plain model, as measured and as counted, for the *next picture*: that of a model which is "
            "loaded. Each is measured once.",
            "",
            *markdown_table(
                ["", "first, with what it loads, s", "next picture, s", "TFLOP", "steps", "floor", "× / floor"],
                _start_rows(results),
            ),
            "",
            f"## A picture of {PICTURE_STEPS} steps",
            "",
            "As in the paper's comparison: the reference is new, the models are loaded, one picture of "
            f"{PICTURE_SIZE}² is drawn. Sums of what was measured above.",
            "",
            *markdown_table(
                ["", "looking at the reference, s", "steps, s", "together, s", "×", "floor", "× / floor"],
                _picture_rows(results),
            ),
            "",
            "## Everything else",
            "",
            *markdown_table(["", "s"], ([name, _seconds(value)] for name, value in results.seconds.items())),
            "",
            *markdown_table(["", "MB"], ([name, f"{value / 1e6:,.1f}"] for name, value in results.bytes.items())),
            "",
        ]
    )


def _step_table(steps: Sequence[StepCost], operations: Operations) -> list[str]:
    heads = ["", "pictures", "step, s", "×", "floor", "× / floor", "once, s", "memory, MB"]
    return markdown_table(heads, (_step_row(cost, floor(operations, cost.variant, cost.size)) for cost in steps))


def _step_row(cost: StepCost, least: float) -> list[str]:
    pictures = f"{cost.size}²" + (f", batch {cost.batch}" if cost.batch > 1 else "")
    times = [_seconds(cost.seconds), *_ratios(cost.ratio, least), _seconds(cost.once)]
    return [cost.variant, pictures, *times, f"{cost.memory / 1e6:,.0f}"]


def _operation_rows(results: Results) -> Iterable[list[str]]:
    for variant, of_sizes in results.operations.items():
        least = {size: floor(results.operations, variant, size) for size in of_sizes}
        yield [variant, *(f"{count / 1e12:.3f} ({least[size]:.3f}×)" for size, count in of_sizes.items())]


def _start_rows(results: Results) -> Iterable[list[str]]:
    plain = _steps_of_a_picture(results).get(PLAIN)
    for start in results.starts:
        ratios = [""] * 3
        if plain and start.operations:
            ratios = _ratios(start.again / plain.seconds, start.operations / results.operations[PLAIN][PICTURE_SIZE])
        yield [start.way, _seconds(start.first), _seconds(start.again), _tera(start.operations), *ratios]


def _picture_rows(results: Results) -> Iterable[list[str]]:
    costs, looks = _steps_of_a_picture(results), {start.way: start for start in results.starts}
    if PLAIN not in costs:
        return
    plain = PICTURE_STEPS * costs[PLAIN].seconds
    for variant, cost in costs.items():
        if variant not in (PLAIN, *_LOOKING):
            continue
        look = looks.get(_LOOKING.get(variant, ""), _NO_LOOK)
        before, steps = look.again + cost.once, plain * cost.ratio
        counted = PICTURE_STEPS * results.operations[PLAIN][PICTURE_SIZE]
        least = floor(results.operations, variant, PICTURE_SIZE) + (look.operations or 0) / counted
        times = (_seconds(seconds) for seconds in (before, steps, before + steps))
        yield [variant, *times, *_ratios((before + steps) / plain, least)]


def _steps_of_a_picture(results: Results) -> dict[str, StepCost]:
    """Costs by variant."""
    return {cost.variant: cost for cost in results.steps if (cost.size, cost.batch) == (PICTURE_SIZE, 1)}


def _ratios(ratio: float, least: float) -> list[str]:
    return [f"{ratio:.3f}", f"{least:.3f}", f"{ratio / least:.3f}"]


def _sizes(results: Results) -> Iterable[int]:
    return results.operations[PLAIN]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.3g}"


def _tera(operations: int | None) -> str:
    return "" if operations is None else f"{operations / 1e12:.3f}"


def plot(results: Results) -> Image.Image:
    """Bars of measured steps and marks at their floors, of the first size and batch that was measured."""
    first = results.steps[0]
    costs = [cost for cost in results.steps if (cost.size, cost.batch) == (first.size, first.batch)]
    costs.sort(key=lambda cost: list(results.operations).index(cost.variant))
    largest = max(cost.ratio for cost in costs)
    font = ImageFont.load_default(_FONT_SIZE)
    image = Image.new("RGB", (_WIDTH, (len(costs) + 1) * _LINE + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(image)

    def place(ratio: float) -> float:
        return _LABELS + (_WIDTH - _LABELS - 4 * _MARGIN) * ratio / largest

    title = f"a step at {first.size} by {first.size}, batch {first.batch}, in steps of the plain model (mark: floor)"
    draw.text((_MARGIN, _MARGIN), title, "black", font, anchor="lm")
    for number, cost in enumerate(costs, start=1):
        y, least = _MARGIN + number * _LINE, place(floor(results.operations, cost.variant, cost.size))
        draw.text((_LABELS - 8, y), cost.variant, "black", font, anchor="rm")
        draw.rectangle((_LABELS, y - 9, place(cost.ratio), y + 9), _BAR)
        draw.line((least, y - 12, least, y + 12), _FLOOR, 3)
        draw.text((max(place(cost.ratio), least) + 8, y), f"{cost.ratio:.3f}", "black", font, anchor="lm")
    return image
