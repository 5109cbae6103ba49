"""The picture of a comparison: quality against processor time, and the frontier's line; readable at 800 pixels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from models.report.frontier import FULL_DEPTH, Comparison, Point, frontier

_DOTS_PER_INCH = 100
_SIZE = (8.0, 4.8)
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_MARKERS = "osD^v<>P"
_PALETTE: Final = 128
_NEAR: Final = 1.25
"""Points whose costs differ by less stand so close that those of one student share a name, those of two have theirs on
two sides, and those of a third have none."""
_PLACES: Final[Mapping[str, dict[str, Any]]] = {
    "above": {"xytext": (-5, 5), "ha": "right"},
    "below": {"xytext": (5, -13), "ha": "left"},
}


def plot_comparison(path: Path, found: Comparison) -> None:
    """Quality with its interval against processor time (log): one colour a student, what is worth shipping filled."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    panel = figure.subplots()
    kept = [found.points[at] for at in frontier(found.points)]
    names = list(dict.fromkeys(point.name for point in found.points if point.runs))
    for number, name in enumerate(names):
        of_student = [point for point in found.points if point.runs and point.name == name]
        look = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        _student(panel, of_student, kept, look)
    _references(panel, found.points)
    _line_of_frontier(panel, kept)
    _axes(panel, found)
    if panel.get_legend_handles_labels()[0]:
        figure.legend(fontsize=9, ncols=3, loc="outside upper center", frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """As a PNG of a palette: a third of the bytes, of which every student's card carries a copy."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DOTS_PER_INCH)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # no software version in the file, so that the same numbers give the same bytes
    drawn.quantize(_PALETTE).save(path, format="PNG", optimize=True)


def _axes(panel: Any, found: Comparison) -> None:
    panel.set_xscale("log")
    panel.margins(x=0.2, y=0.1)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    if found.task == "classify":
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    what = "pair" if found.task == "rank" else "text"
    panel.set_xlabel(f"µs of processor time a {what} (batch 32, one core)", fontsize=10)
    panel.set_ylabel(f"{found.measure}, {found.split}", fontsize=10)
    panel.grid(alpha=0.3)


def _student(panel: Any, points: Sequence[Point], kept: Sequence[Point], look: dict[str, Any]) -> None:
    """A student's settings, joined by a thin line, as they are one bundle; hollow is what another point beats."""
    ordered = sorted(points, key=lambda point: point.cost)
    colour, label = look["color"], points[0].name
    panel.plot([p.cost for p in ordered], [p.value for p in ordered], color=colour, linewidth=0.8, alpha=0.5)
    if all(point not in kept for point in points):
        label = f"{label} (beaten)"
    for at, point in enumerate(ordered):
        low, high = _spans(point)
        panel.errorbar(
            [point.cost],
            [point.value],
            yerr=[[low], [high]],
            markersize=7,
            markerfacecolor=colour if point in kept else "white",
            elinewidth=0.6,
            capsize=2,
            linestyle="",
            label=label if at == 0 else None,
            **look,
        )
        if point.us_known is not None:
            _known(panel, point, look)


def _known(panel: Any, point: Point, look: dict[str, Any]) -> None:
    """What a pair costs where its passage was read before: off the frontier, since it depends on the traffic."""
    assert point.us_known is not None
    colour = look["color"]
    panel.plot([point.us_known, point.cost], [point.value] * 2, color=colour, linewidth=0.9, linestyle=":")
    panel.plot([point.us_known], [point.value], markersize=5, markerfacecolor="white", linestyle="", **look)
    where = {"textcoords": "offset points", "xytext": (5, -13), "fontsize": 9, "color": colour}
    panel.annotate("known passages", (point.us_known, point.value), **where)


def _spans(point: Point) -> tuple[float, float]:
    assert point.quality is not None
    # subtle: a bootstrap interval of few rows need not hold the value itself
    return max(0.0, point.value - point.quality.low), max(0.0, point.quality.high - point.value)


def _references(panel: Any, points: Sequence[Point]) -> None:
    known = [point for point in points if point.reference and math.isfinite(point.value)]
    for number, point in enumerate(known):
        style = ("--", ":", "-.")[number % 3]
        panel.axhline(point.value, color="black", linewidth=0.9, linestyle=style, label=point.name)
        if math.isfinite(point.cost):
            panel.plot([point.cost], [point.value], "*", color="black", markersize=11)


def _line_of_frontier(panel: Any, points: Sequence[Point]) -> None:
    """A step at each point: between two, the cheaper one is what can be had."""
    if not points:
        return
    costs, values = [point.cost for point in points], [point.value for point in points]
    label = "worth shipping (filled)"
    panel.plot(costs, values, color="black", linewidth=1.2, alpha=0.6, drawstyle="steps-post", label=label)
    # subtle: where neither side has room the table must do; two names on top of each other say nothing
    room = {"above": 0.0, "below": 0.0}
    for group in _close_together(points):
        side = next((side for side, taken in room.items() if group[0].cost > taken * _NEAR), None)
        # names are in the legend; full depth is the one without a word
        named = [point for point in group if point.setting != FULL_DEPTH]
        if side is None or not named:
            continue
        room[side] = group[-1].cost
        at = named[0] if side == "above" else named[-1]
        place = _PLACES[side]
        panel.annotate(_settings(named), (at.cost, at.value), textcoords="offset points", fontsize=9, **place)


def _close_together(points: Sequence[Point]) -> list[list[Point]]:
    """Points of a frontier, cheapest first, in groups of one student that stand too close for a name each."""
    groups: list[list[Point]] = []
    for point in points:
        first = groups[-1][0] if groups else None
        if first is not None and first.name == point.name and point.cost <= first.cost * _NEAR:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _settings(group: Sequence[Point]) -> str:
    """What a group's points are set to.

    >>> _settings([Point("a", setting="risk 0.05"), Point("a", setting="risk 0.01")])
    'risk 0.05, 0.01'
    """
    first, *others = (point.setting for point in group)
    return ", ".join([first, *(setting.removeprefix("risk ") for setting in others)])
