"""The plots of the report card, as small PNG files. E exits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from models.evaluate.embedding import EmbedQuality
from models.evaluate.metrics import ReliabilityBin
from models.evaluate.quality import SettingQuality, StudentQuality
from models.evaluate.speed import Timing
from models.evaluate.tables import setting_name

DOTS_PER_INCH = 80
_SIZE = (7.0, 3.6)
_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")


def plot_frontier(path: Path, quality: StudentQuality, *, speed: Sequence[Timing] = ()) -> None:
    """Quality against depth and, where it was measured, against speed, for every exit and operating point.

    Quality is accuracy, or agreement with full depth where the rows carry no labels.

    Args:
        speed: from `models.evaluate.speed.frontier`.
    """
    figure = Figure(figsize=_SIZE)
    panels = figure.subplots(1, 2 if speed else 1, sharey=True, squeeze=False)[0]
    labelled = quality.full_depth.accuracy is not None
    panels[0].set_ylabel("accuracy" if labelled else "same label as full depth")
    _depth_panel(panels[0], quality)
    if speed:
        _speed_panel(panels[1], quality, {timing.contender: timing.texts_per_s for timing in speed})
    for panel in panels:
        if quality.teacher_accuracy is not None:
            panel.axhline(quality.teacher_accuracy, color="black", linewidth=0.8, linestyle="--", label="teacher")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    _save(figure, path)


def plot_forms(path: Path, quality: EmbedQuality) -> None:
    """The correlation of every form of an embedder's vectors, with intervals, beside its teacher's."""
    figure = Figure(figsize=_SIZE)
    panel = figure.subplots()
    values = [form.spearman for form in quality.forms]
    # subtle: a bootstrap interval of few pairs need not hold the value itself
    spans = [
        [max(0.0, form.spearman - form.low) for form in quality.forms],
        [max(0.0, form.high - form.spearman) for form in quality.forms],
    ]
    panel.errorbar([form.form for form in quality.forms], values, yerr=spans, fmt="o", color=_COLOURS[0], capsize=4)
    panel.axhline(quality.teacher, color="black", linewidth=0.8, linestyle="--", label="teacher")
    panel.set_ylabel("Spearman correlation")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    _save(figure, path)


def _depth_panel(panel: Any, quality: StudentQuality) -> None:
    exits = [(leave.depth, _value(leave.accuracy, leave.agreement), leave.exit) for leave in quality.exits]
    points = [(each.mean_depth, _value(each.accuracy, each.agreement), setting_name(each)) for each in _points(quality)]
    _scatter(panel, exits, points)
    panel.set_xlabel("mean depth (share of full compute)")
    panel.set_xlim(0, 1.05)


def _speed_panel(panel: Any, quality: StudentQuality, speed: dict[str, float]) -> None:
    exits = [
        (speed[f"exit {leave.exit}"], _value(leave.accuracy, leave.agreement), leave.exit)
        for leave in quality.exits
        if f"exit {leave.exit}" in speed
    ]
    points = [
        (speed[setting_name(each)], _value(each.accuracy, each.agreement), setting_name(each))
        for each in _points(quality)
        if setting_name(each) in speed
    ]
    _scatter(panel, exits, points)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", labelsize=7)
    panel.set_xlabel("texts/s (batch 32, one thread)")


def _points(quality: StudentQuality) -> Sequence[SettingQuality]:
    return quality.settings[1:]


def _value(accuracy: float | None, agreement: float) -> float:
    return agreement if accuracy is None else accuracy


def _scatter(panel: Any, exits: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float, str]]) -> None:
    panel.plot(
        [x for x, _, _ in exits], [y for _, y, _ in exits], "s", color=_COLOURS[0], label="all leave at this exit"
    )
    for x, y, name in exits:
        panel.annotate(name, (x, y), textcoords="offset points", xytext=(5, -10), fontsize=7, color=_COLOURS[0])
    if points:
        panel.plot(
            [x for x, _, _ in points], [y for _, y, _ in points], "o-", color=_COLOURS[4], label="certified risk"
        )
    for x, y, name in points:
        panel.annotate(name.removeprefix("risk "), (x, y), textcoords="offset points", xytext=(4, 5), fontsize=7)


def plot_exits(path: Path, quality: StudentQuality) -> None:
    """Where items leave: one bar for each setting, cut into the exits' shares."""
    figure = Figure(figsize=(7.0, 0.8 + 0.45 * len(quality.settings)))
    panel = figure.subplots()
    names = [setting_name(setting) for setting in quality.settings]
    left = [0.0] * len(names)
    for index, leave in enumerate(quality.exits):
        shares = [setting.exit_shares[index] for setting in quality.settings]
        panel.barh(names, shares, left=left, color=_COLOURS[index % len(_COLOURS)], label=leave.exit)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel("share of items that leave at the exit")
    panel.legend(fontsize=8, ncols=len(quality.exits), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def plot_calibration(path: Path, bins: Sequence[ReliabilityBin]) -> None:
    """The calibration diagram of full depth: mean score against share right, and how many rows each bin holds."""
    figure = Figure(figsize=(4.2, 3.8))
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    most = max(each.rows for each in bins)
    panel.bar(
        [each.confidence for each in bins],
        [each.rows / most for each in bins],
        width=0.04,
        color=_COLOURS[6],
        label="rows (relative)",
    )
    panel.plot([e.confidence for e in bins], [e.right for e in bins], "o-", color=_COLOURS[0], label="share right")
    panel.set_xlabel("score of the answer")
    panel.set_ylabel("share right")
    panel.legend(fontsize=8, loc="upper left")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.tight_layout()
    # subtle: no software version in the file, so that the same numbers give the same bytes
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
