"""Latency against offered load (for one run: against time) as a PNG: the client's view above, the server's below."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtest.errors import OutputFailed
from loadtest.record import Sample
from loadtest.run import RunResult, ScenarioResult
from loadtest.stats import percentile

_SIZE = (7.0, 6.0)
_DOTS_PER_INCH = 100
_PARTS = 30
_COLOURS = {"p50": "#4477aa", "p99": "#ee6677", "queue": "#ccbb44", "run": "#228833"}


def plot(path: Path, result: ScenarioResult) -> None:
    """Draw a scenario's result. Raises: OutputFailed: the file cannot be written."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    if len(result.runs) > 1:
        _by_rate(above, below, sorted(result.runs, key=lambda run: run.summary.offered_per_s))
        below.set_xlabel("offered load (requests a second)")
    else:
        _by_time(above, below, result.runs[0].played.sample)
        below.set_xlabel("seconds since the start")
    _finish(above, "latency, as clients see it (ms)")
    _finish(below, "median time in the server (ms)")
    above.set_title(result.scenario.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(path)
    except OSError as error:
        raise OutputFailed(f"{path}: cannot be written: {error.strerror}") from error


def _by_rate(above: Any, below: Any, runs: Sequence[RunResult]) -> None:
    rates = [run.summary.offered_per_s for run in runs]
    for name in ("p50", "p99"):
        above.plot(rates, [_finite(getattr(run.summary.latency_ms, name)) for run in runs], **_line(name))
    for run in runs:
        if not run.holds:
            above.axvline(run.summary.offered_per_s, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    below.plot(rates, [run.summary.queue_ms.p50 for run in runs], **_line("queue"))
    below.plot(rates, [run.summary.run_ms.p50 for run in runs], **_line("run"))


def _by_time(above: Any, below: Any, sample: Sample) -> None:
    edges = np.linspace(sample.intended.min(), np.nextafter(sample.intended.max(), np.inf), _PARTS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    parts = [sample.where((sample.intended >= a) & (sample.intended < b)) for a, b in itertools.pairwise(edges)]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        above.plot(middles, [_finite(percentile(part.felt_ms, share)) for part in parts], **_line(name))
    for name, column in (("queue", "queue_ms"), ("run", "run_ms")):
        told = [getattr(part, column)[part.ok] for part in parts]
        below.plot(middles, [percentile(values[~np.isnan(values)], 0.5) for values in told], **_line(name))


def _line(name: str) -> dict[str, Any]:
    return {"label": name, "color": _COLOURS[name], "marker": "o", "markersize": 3}


def _finite(value: float) -> float:
    return value if np.isfinite(value) else np.nan


def _finish(panel: Any, label: str) -> None:
    panel.set_ylabel(label)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    if panel.get_ylim()[1] > 0 and any(np.isfinite(line.get_ydata()).any() for line in panel.get_lines()):
        panel.set_yscale("log")
