"""Description, not proof: what the exits give when the calibration rows are drawn again and again.

One calibration set is one draw; its operating points wander with it. Here the pool is split and resampled many
times to the stated sizes, the whole procedure (temperatures, path, certificate) is repeated, and what it gives on
the same test rows is averaged. N rows, E exits, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.evaluate.exits import Counts, ExitRows, Risks, certify, choose_path, exit_taken
from models.evaluate.metrics import exact_test
from models.evaluate.scores import Logits, exit_rows
from models.evaluate.temperature import fit_temperatures
from service.bundle.manifest import Confidence


@dataclass(frozen=True, slots=True)
class Resampling:
    """How the pool is drawn again: `rows_a` and `rows_b` rows of two disjoint random parts of it.

    A part that is too small for its number of rows is drawn from with replacement (bootstrap).
    """

    rows_a: int
    rows_b: int
    runs: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ResplitSummary:
    """What one risk gave on the test rows, over the runs.

    offered: share of runs that offered the risk; a run that did not counts as full depth below.
    exit_shares, mean_depth, mean_layers: averages; mean_layers is None where the exits' layers are not known.
    disagreement: 5%, 50% and 95% quantiles of the test disagreement; `above_risk`: share of runs with more than the
        risk, `refuted`: share of runs whose test disagreement refutes the promise by the exact test at 5%.
    """

    risk: float
    runs: int
    rows_a: int
    rows_b: int
    test_rows: int
    offered: float
    exit_shares: tuple[float, ...]
    mean_depth: float
    mean_layers: float | None
    disagreement: tuple[float, float, float]
    above_risk: float
    refuted: float


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """The exits' properties and the promises: what calibration needs beside rows."""

    depths: tuple[float, ...]
    risks: Risks
    confidence: Confidence = "max_probability"
    layers: tuple[int, ...] | None = None


def resplits(
    pool: Sequence[Logits], test: Sequence[Logits], *, settings: ExitSettings, resampling: Resampling
) -> tuple[ResplitSummary, ...]:
    """Repeat the calibration on resampled rows.

    Args:
        pool: one [N, C] per exit, the calibration rows (A and B together).
        test: one [M, C] per exit.
    Returns: one summary per risk, risks rising.
    """
    rng = np.random.default_rng(resampling.seed)
    runs = [_one(pool, test, settings, _draw(len(pool[0]), resampling, rng)) for _ in range(resampling.runs)]
    return tuple(
        _summary([run[i] for run in runs], risk, settings, resampling)
        for i, risk in enumerate(sorted(settings.risks.values))
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One run at one risk: test rows by the exit they leave at, test disagreements, whether it was offered."""

    leaving: tuple[int, ...]
    errors: int
    offered: bool


def _draw(rows: int, resampling: Resampling, rng: np.random.Generator) -> tuple[Counts, Counts]:
    order = rng.permutation(rows)
    cut = round(rows * resampling.rows_a / (resampling.rows_a + resampling.rows_b))
    parts = ((order[:cut], resampling.rows_a), (order[cut:], resampling.rows_b))
    first, second = (rng.choice(part, size=size, replace=size > len(part)) for part, size in parts)
    return first, second


def _one(
    pool: Sequence[Logits], test: Sequence[Logits], settings: ExitSettings, draw: tuple[Counts, Counts]
) -> list[_Run]:
    """One whole calibration; for each risk what it gives on the test rows."""
    logits_a, logits_b = ([each[index] for each in pool] for index in draw)
    temperatures = fit_temperatures(logits_a)
    rows_a, rows_b, rows_test = (
        exit_rows(logits, temperatures=temperatures, rule=settings.confidence) for logits in (logits_a, logits_b, test)
    )
    path = choose_path(rows_a, depths=settings.depths, risks=settings.risks.values)
    points = certify(path, rows_b, depths=settings.depths, risks=settings.risks)
    thresholds = {point.risk: point.thresholds for point in points}
    never = (None,) * (len(settings.depths) - 1)
    return [
        _on_test(rows_test, thresholds.get(risk, never), risk in thresholds) for risk in sorted(settings.risks.values)
    ]


def _on_test(rows: ExitRows, thresholds: tuple[float | None, ...], offered: bool) -> _Run:
    taken = exit_taken(rows, thresholds)
    answered = rows.labels[np.arange(rows.rows), taken]
    leaving = np.bincount(taken, minlength=rows.labels.shape[1])
    return _Run(tuple(leaving.tolist()), int((answered != rows.labels[:, -1]).sum()), offered)


def _summary(runs: Sequence[_Run], risk: float, settings: ExitSettings, resampling: Resampling) -> ResplitSummary:
    test_rows = sum(runs[0].leaving)
    mean = np.mean([run.leaving for run in runs], axis=0) / test_rows
    differ = np.array([run.errors for run in runs]) / test_rows
    low, middle, high = np.quantile(differ, (0.05, 0.5, 0.95))
    return ResplitSummary(
        risk=risk,
        runs=resampling.runs,
        rows_a=resampling.rows_a,
        rows_b=resampling.rows_b,
        test_rows=test_rows,
        offered=float(np.mean([run.offered for run in runs])),
        exit_shares=tuple(float(share) for share in mean),
        mean_depth=float(mean @ np.asarray(settings.depths)),
        mean_layers=None if settings.layers is None else float(mean @ np.asarray(settings.layers)),
        disagreement=(float(low), float(middle), float(high)),
        above_risk=float((differ > risk).mean()),
        refuted=float(np.mean([exact_test(run.errors, test_rows, risk=risk).rejected for run in runs])),
    )
