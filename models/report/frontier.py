"""Many students of one task on one frontier: which are worth shipping, as a table and a picture.

A point is one student in one setting. Point A dominates point B when A is at least as good and at least 3% cheaper, or
better and not dearer; 3% is what two timings of one student differ by. This is a strict order, so of any points with a
quality and a cost at least one is not dominated. A difference in quality counts however small it is: the intervals say
which differences the rows can tell.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from models.evaluate.metrics import Interval
from models.evaluate.tables import markdown, percent

Size = Literal["bundle_bytes", "memory_bytes"]

NOISE: Final = 0.03
NEAR_BEST: Final = 0.01
FULL_DEPTH: Final = "full depth"
FRONTIER, LEAST_BYTES, LEAST_MEMORY = "frontier", "smallest bundle", "least memory"

_DOTS_PER_INCH = 80
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_MARKERS = "osD^v<>P"


@dataclass(frozen=True, slots=True)
class Point:
    """One student in one setting; or a teacher or baseline, beside which students stand.

    quality: in the task's measure; None where the student was not made (`failed` says why), or of a reference where
    only costs are known. macro_f1, retention: see `models.evaluate.standing`. us_per_text: microseconds of processor
    time at batch 32, ids given; us_alone: the same at batch 1; ms_whole: milliseconds alone, with tokenizing.
    memory_bytes: what loading and running it adds to a process. A cost is None where it was not measured.
    """

    name: str
    setting: str = FULL_DEPTH
    quality: Interval | None = None
    macro_f1: Interval | None = None
    retention: Interval | None = None
    us_per_text: float | None = None
    us_alone: float | None = None
    ms_whole: float | None = None
    memory_bytes: int | None = None
    bundle_bytes: int | None = None
    layers: int | None = None
    parameters: int | None = None
    reference: bool = False
    failed: str = ""

    @property
    def value(self) -> float:
        """The quality; NaN where there is none."""
        return math.nan if self.quality is None else self.quality.value

    @property
    def cost(self) -> float:
        """Microseconds of processor time a text at batch 32; NaN where it was not timed."""
        return math.nan if self.us_per_text is None else self.us_per_text

    @property
    def runs(self) -> bool:
        """Whether it is a student with a quality and a cost."""
        return not self.reference and math.isfinite(self.value) and math.isfinite(self.cost)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All points of one comparison, and how they were measured.

    measure: the quality's name. split: which rows it was measured on, in words. timed: how the costs were taken.
    notes: what a reader must know to read the figures right.
    """

    task: str
    measure: str
    split: str
    timed: str
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Point, ...]:
        """Students that were not made."""
        return tuple(point for point in self.points if point.failed)


def dominates(first: Point, second: Point) -> bool:
    """Whether `first` makes `second` not worth shipping, both being students with a quality and a cost.

    >>> slow, fast = (Point(str(cost), quality=Interval(0.9, 0.8, 1), us_per_text=cost) for cost in (103.0, 100.0))
    >>> dominates(fast, slow), dominates(slow, fast)
    (True, False)
    """
    if not (first.runs and second.runs):
        return False
    clearly_cheaper = first.cost * (1 + NOISE) <= second.cost
    return (first.value >= second.value and clearly_cheaper) or (
        first.value > second.value and first.cost <= second.cost
    )


def frontier(points: Sequence[Point]) -> tuple[int, ...]:
    """The places of the students that no other dominates, costs rising."""
    left = [
        at for at, point in enumerate(points) if point.runs and not any(dominates(other, point) for other in points)
    ]
    return tuple(sorted(left, key=lambda at: (points[at].cost, points[at].value)))


def smallest(points: Sequence[Point], size: Size) -> int | None:
    """The place of the smallest student within one point (0.01) of the best quality; of equals the better, then the
    cheaper. None where no student's size is known.
    """
    students = [at for at, point in enumerate(points) if not point.reference and math.isfinite(point.value)]
    best = max((points[at].value for at in students), default=math.nan)
    near = [at for at in students if points[at].value >= best - NEAR_BEST and getattr(points[at], size) is not None]
    return min(near, key=lambda at: _smallness(points[at], size), default=None)


def _smallness(point: Point, size: Size) -> tuple[float, float, float]:
    return getattr(point, size), -point.value, math.inf if math.isnan(point.cost) else point.cost


def marks(points: Sequence[Point]) -> tuple[tuple[str, ...], ...]:
    """What is worth saying of each point: on the frontier, or the smallest near the best."""
    kept = set(frontier(points))
    least = {LEAST_BYTES: smallest(points, "bundle_bytes"), LEAST_MEMORY: smallest(points, "memory_bytes")}
    return tuple(
        (*((FRONTIER,) if at in kept else ()), *(name for name, place in least.items() if place == at))
        for at in range(len(points))
    )


def comparison_table(found: Comparison) -> str:
    """One line a point; what is on the frontier is bold."""
    scored = any(point.macro_f1 for point in found.points)
    head = [
        "student",
        "setting",
        f"{found.measure} (95%)",
        *(["macro F1 (95%)"] if scored else []),
        "of the teacher's",
        "µs a text, batch 32",
        "µs, batch 1",
        "ms alone, tokenizing too",
        "memory, MiB",
        "bundle, MB",
        "layers",
        "parameters, M",
        "worth shipping",
    ]
    shown = percent if found.task == "classify" else _plain
    said = zip(found.points, marks(found.points), strict=True)
    return markdown(head, [_line(point, mark, shown=shown, scored=scored) for point, mark in said])


def _line(point: Point, mark: Sequence[str], *, shown: Callable[[float], str], scored: bool) -> list[str]:
    name = f"**{point.name}**" if FRONTIER in mark else point.name
    return [
        name,
        "–" if point.reference else point.setting,
        "not made" if point.failed else _interval(point.quality, shown),
        *([_interval(point.macro_f1, shown)] if scored else []),
        _interval(point.retention, _plain),
        _number(point.us_per_text, 1),
        _number(point.us_alone, 1),
        _number(point.ms_whole, 3),
        _number(point.memory_bytes, 1, unit=1 << 20),
        _number(point.bundle_bytes, 2, unit=1_000_000),
        "–" if point.layers is None else str(point.layers),
        _number(point.parameters, 2, unit=1_000_000),
        "reference" if point.reference else ", ".join(mark),
    ]


def _interval(value: Interval | None, shown: Callable[[float], str]) -> str:
    if value is None:
        return "–"
    if math.isnan(value.value):
        return "undefined"
    return f"{shown(value.value)} ({shown(value.low)} to {shown(value.high)})"


def _plain(value: float) -> str:
    return f"{value:.4f}"


def _number(value: float | None, digits: int, *, unit: int = 1) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


def comparison_page(found: Comparison, *, picture: str | None = None) -> str:
    """The whole of it as Markdown: how, the table, what to ship, what was not made, what to know.

    Args:
        picture: the plot's file, where the page is a file beside it.
    """
    parts = [
        f"# {found.task}: {len({point.name for point in found.points if not point.reference})} students compared",
        f"{found.measure} on {found.split}; {found.timed}.",
        *([f"![{found.measure} against processor time]({picture})"] if picture else []),
        comparison_table(found),
        "\n".join(_verdict(found)),
    ]
    if found.failed:
        parts.append("Not made:\n\n" + "\n".join(f"- {point.name}: {point.failed}" for point in found.failed))
    parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(found: Comparison) -> list[str]:
    kept = [_full_name(found.points[at]) for at in frontier(found.points)]
    lines = [f"- Worth shipping, cheapest first: {'; '.join(kept) or 'none'}."]
    sizes: tuple[tuple[str, Size], ...] = ((LEAST_BYTES, "bundle_bytes"), (LEAST_MEMORY, "memory_bytes"))
    for name, size in sizes:
        place = smallest(found.points, size)
        if place is not None:
            lines.append(f"- Within one point of the best, {name}: {_full_name(found.points[place])}.")
    lines.append(
        f"- Left out is what another beats: at least as good and {NOISE:.0%} cheaper at batch 32, or better and not "
        "dearer. Whether a difference in quality is more than chance, its interval says."
    )
    return lines


def _full_name(point: Point) -> str:
    return point.name if point.setting == FULL_DEPTH else f"{point.name}, {point.setting}"


def plot_comparison(path: Path, found: Comparison) -> None:
    """Quality with its interval against processor time a text (log), the frontier's line, and names."""
    figure = Figure(figsize=(8.0, 4.6))
    panel = figure.subplots()
    names = list(dict.fromkeys(point.name for point in found.points if point.runs))
    for number, name in enumerate(names):
        of_student = [point for point in found.points if point.runs and point.name == name]
        _student(panel, of_student, colour=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)])
    _references(panel, found.points)
    _line_of_frontier(panel, [found.points[at] for at in frontier(found.points)])
    panel.set_xscale("log")
    panel.margins(x=0.12, y=0.12)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("µs of processor time a text (batch 32, one core)")
    panel.set_ylabel(f"{found.measure}, {found.split}", fontsize=9)
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    FigureCanvasAgg(figure)
    figure.tight_layout()
    # subtle: no software version in the file, so that the same numbers give the same bytes
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def _student(panel: Any, points: Sequence[Point], *, colour: str, marker: str) -> None:
    costs, values = [point.cost for point in points], [point.value for point in points]
    spans = [_spans(point) for point in points]
    panel.errorbar(
        costs,
        values,
        yerr=[[low for low, _ in spans], [high for _, high in spans]],
        fmt=marker,
        color=colour,
        markersize=5,
        elinewidth=0.6,
        capsize=2,
        alpha=0.85,
        label=points[0].name,
    )


def _spans(point: Point) -> tuple[float, float]:
    assert point.quality is not None
    # subtle: a bootstrap interval of few rows need not hold the value itself
    return max(0.0, point.value - point.quality.low), max(0.0, point.quality.high - point.value)


def _references(panel: Any, points: Sequence[Point]) -> None:
    known = [point for point in points if point.reference and math.isfinite(point.value)]
    for number, point in enumerate(known):
        style = ("--", ":", "-.")[number % 3]
        panel.axhline(point.value, color="black", linewidth=0.8, linestyle=style, label=point.name)
        if math.isfinite(point.cost):
            panel.plot([point.cost], [point.value], "*", color="black", markersize=9)


def _line_of_frontier(panel: Any, points: Sequence[Point]) -> None:
    """A step at each point: between two, the cheaper one is what can be had."""
    if not points:
        return
    costs, values = [point.cost for point in points], [point.value for point in points]
    panel.plot(costs, values, color="black", linewidth=1.0, alpha=0.5, drawstyle="steps-post")
    ring = {"color": "black", "markersize": 11, "fillstyle": "none", "markeredgewidth": 0.8, "linestyle": ""}
    panel.plot(costs, values, marker="o", label="worth shipping\n(a number: its risk)", **ring)
    for point in points:
        # names are in the legend: written here, those of near points would cover one another
        text = "" if point.setting == FULL_DEPTH else point.setting.removeprefix("risk ")
        panel.annotate(text, (point.cost, point.value), textcoords="offset points", xytext=(6, 6), fontsize=7)
