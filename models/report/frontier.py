"""Many students of one task on one frontier: which are worth shipping, as a table and a picture.

A point is one student in one setting. Point A dominates point B when A is at least as good and at least 3% cheaper, or
better and not dearer; 3% is what two timings of one student differ by. This is a strict order, so of any points with a
quality and a cost at least one is not dominated. A difference in quality counts however small it is: the intervals say
which differences the rows can tell.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from models.evaluate.metrics import Interval
from models.evaluate.tables import markdown, percent

Size = Literal["bundle_bytes", "memory_bytes"]

NOISE: Final = 0.03
NEAR_BEST: Final = 0.01
FULL_DEPTH: Final = "full depth"
FRONTIER, LEAST_BYTES, LEAST_MEMORY = "frontier", "smallest bundle", "least memory"


@dataclass(frozen=True, slots=True)
class Point:
    """One student in one setting; or a teacher or baseline, beside which students stand.

    quality: in the task's measure; None where the student was not made (`failed` says why), or of a reference where
    only costs are known. macro_f1, retention: see `models.evaluate.standing`. us_per_text: microseconds of processor
    time at batch 32, ids given; us_alone: the same at batch 1; us_known: a pair's at batch 32 whose passage was read
    before, of a ranker that keeps passages; ms_whole: milliseconds alone, with tokenizing.
    memory_bytes: what loading and running it adds to a process. A cost is None where it was not measured.
    """

    name: str
    setting: str = FULL_DEPTH
    quality: Interval | None = None
    macro_f1: Interval | None = None
    retention: Interval | None = None
    us_per_text: float | None = None
    us_alone: float | None = None
    us_known: float | None = None
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
    keeps = any(point.us_known is not None for point in found.points)
    what = "pair" if found.task == "rank" else "text"
    head = [
        "student",
        "setting",
        f"{found.measure} (95%)",
        *(["macro F1 (95%)"] if scored else []),
        "of the teacher's",
        f"µs a {what}, batch 32",
        "µs, batch 1",
        *(["µs, known passages"] if keeps else []),
        "ms alone, tokenizing too",
        "memory, MiB",
        "bundle, MB",
        "layers",
        "parameters, M",
        "worth shipping",
    ]
    shown = percent if found.task == "classify" else _plain
    said = zip(found.points, marks(found.points), strict=True)
    return markdown(head, [_line(point, mark, shown=shown, scored=scored, keeps=keeps) for point, mark in said])


def _line(point: Point, mark: Sequence[str], *, shown: Callable[[float], str], scored: bool, keeps: bool) -> list[str]:
    name = f"**{point.name}**" if FRONTIER in mark else point.name
    return [
        name,
        "–" if point.reference else point.setting,
        "not made" if point.failed else _interval(point.quality, shown),
        *([_interval(point.macro_f1, shown)] if scored else []),
        _interval(point.retention, _plain),
        _number(point.us_per_text, 1),
        _number(point.us_alone, 1),
        *([_number(point.us_known, 1)] if keeps else []),
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
    students = len({point.name for point in found.points if not point.reference})
    parts = [
        f"# {found.task}: {students} student{'' if students == 1 else 's'} compared",
        f"{found.measure} on {found.split}; {found.timed}.",
        *([f"![{found.measure} against processor time]({picture})"] if picture else []),
        comparison_table(found),
        verdict(found),
    ]
    if found.failed:
        parts.append("Not made:\n\n" + "\n".join(f"- {point.name}: {point.failed}" for point in found.failed))
    parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(found: Comparison) -> str:
    """What is worth shipping, in words, as a list."""
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
    return "\n".join(lines)


def _full_name(point: Point) -> str:
    return point.name if point.setting == FULL_DEPTH else f"{point.name}, {point.setting}"
