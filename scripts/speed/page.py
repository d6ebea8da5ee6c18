"""The results as a page of tables, and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .measuring import StepCost
from .variants import PLAIN, VARIANTS

PLOT = "images/speed.png"
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


@dataclass(frozen=True)
class Results:
    """`machine`: in words. `operations`: (variant, size) → of a step of a batch of 1, by their names joined by a space.
    `starts`: ways from a picture to the first step. `seconds`, `bytes`: what else was measured, by what it is of.
    """

    machine: str
    operations: Mapping[str, Mapping[int, int]]
    steps: Sequence[StepCost]
    starts: Sequence[Start]
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]

    def floor(self, variant: str, size: int) -> float:
        """What its operations would take, in steps of the plain model."""
        return self.operations[variant][size] / self.operations[PLAIN][size]


def markdown(results: Results) -> str:
    """The page. Numbers of operations count two for each multiplication."""
    return "\n".join(
        [
            "# Speed",
            "",
            f"Measured by `python3 scripts/benchmark.py`: {results.machine}. SD1.5 at full size with generated "
            "weights, CFG on: two rows a picture.",
            "",
            f"![Steps of each variant, as measured and as counted]({PLOT})",
            "",
            "## A step",
            "",
            "*×* is to a step of the plain model measured beside it, the median of such pairs. The *floor* is the "
            "same of the operations that both must do. *Once* is what a run takes beside its steps: keys and values of "
            "the reference. *Memory* is what the peak of a step holds more than the plain model's.",
            "",
            *_table(
                ["", "pictures", "step, s", "×", "floor", "× / floor", "once, s", "memory, MB"],
                (_step_row(results, cost) for cost in results.steps),
            ),
            "",
            "`straightforward` is DreamCache as the paper writes it down: cached features projected again at every "
            "step, weights as they were trained. `IP-Adapter` is its mechanism, 16 cross-attentions over image tokens "
            "beside those over the prompt, with nothing around it.",
            "",
            "## Operations of a step",
            "",
            "In TFLOP, of a batch of 1 with both prompts; larger batches take as many times more.",
            "",
            *_table(["", *(f"{size}²" for size in _sizes(results))], _operation_rows(results)),
            "",
            "## From a picture to the first step",
            "",
            *_table(
                ["", "first, with what it loads, s", "next picture, s", "TFLOP"],
                (
                    [start.way, _seconds(start.first), _seconds(start.again), _tera(start.operations)]
                    for start in results.starts
                ),
            ),
            "",
            "## Everything else",
            "",
            *_table(["", "s"], ([name, _seconds(value)] for name, value in results.seconds.items())),
            "",
            *_table(["", "MB"], ([name, f"{value / 1e6:,.1f}"] for name, value in results.bytes.items())),
            "",
        ]
    )


def _step_row(results: Results, cost: StepCost) -> list[str]:
    floor = results.floor(cost.variant, cost.size)
    pictures = f"{cost.size}²" + (f", batch {cost.batch}" if cost.batch > 1 else "")
    times = [_seconds(cost.seconds), f"{cost.ratio:.3f}", f"{floor:.3f}", f"{cost.ratio / floor:.3f}"]
    return [cost.variant, pictures, *times, _seconds(cost.once), f"{cost.memory / 1e6:,.0f}"]


def _operation_rows(results: Results) -> Iterable[list[str]]:
    for variant, of_sizes in results.operations.items():
        cells = (f"{count / 1e12:.3f} ({results.floor(variant, size):.3f}×)" for size, count in of_sizes.items())
        yield [variant, *cells]


def _sizes(results: Results) -> Iterable[int]:
    return results.operations[PLAIN]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.4f}" if seconds < 0.1 else f"{seconds:.2f}"


def _tera(operations: int | None) -> str:
    return "" if operations is None else f"{operations / 1e12:.3f}"


def plot(results: Results) -> Image.Image:
    """Bars of measured steps and marks at their floors, of the first size and batch that was measured."""
    first = results.steps[0]
    costs = [cost for cost in results.steps if (cost.size, cost.batch) == (first.size, first.batch)]
    costs.sort(key=lambda cost: list(VARIANTS).index(cost.variant))
    largest = max(cost.ratio for cost in costs)
    font = ImageFont.load_default(_FONT_SIZE)
    image = Image.new("RGB", (_WIDTH, (len(costs) + 1) * _LINE + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(image)

    def place(ratio: float) -> float:
        return _LABELS + (_WIDTH - _LABELS - 4 * _MARGIN) * ratio / largest

    title = f"a step at {first.size}×{first.size}, batch {first.batch}, in steps of the plain model (mark: floor)"
    draw.text((_MARGIN, _MARGIN), title, "black", font, anchor="lm")
    for number, cost in enumerate(costs, start=1):
        y, floor = _MARGIN + number * _LINE, place(results.floor(cost.variant, cost.size))
        draw.text((_LABELS - 8, y), cost.variant, "black", font, anchor="rm")
        draw.rectangle((_LABELS, y - 9, place(cost.ratio), y + 9), _BAR)
        draw.line((floor, y - 12, floor, y + 12), _FLOOR, 3)
        draw.text((max(place(cost.ratio), floor) + 8, y), f"{cost.ratio:.3f}", "black", font, anchor="lm")
    return image
