"""Simulated populations of known true risk, each hard on the calibration procedure in its own way.

A population is finite and calibration rows are drawn from it with replacement, so the true risk of any exit rule is
a count, not an estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from models.evaluate.exits import ExitRows, Path, Risks, choose_path

JUST_ABOVE = 1e-5
"""By how much a true risk "just above" a promise exceeds it: one row of the population."""

_ROWS = 100_000
_DELTA = 0.05
_ONE = Risks((0.01,), _DELTA)
_FOUR = Risks((0.005, 0.01, 0.02, 0.05), _DELTA, favoured=0.01)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulated situation.

    rows: of split B in each run. rows_a: of split A, where `path` is None and every run chooses its own.
    """

    name: str
    population: ExitRows
    path: Path | None
    risks: Risks
    rows: int
    depths: tuple[float, ...]
    rows_a: int = 0


def scenarios() -> tuple[Scenario, ...]:
    """All of them, in the order they are reported."""
    return jump(), jumps(), wave(), smooth(), whole(), few_rows()


def jump() -> Scenario:
    """The true risk is 0 for many steps, then just above the promise: one step too far always breaks it.

    1,049 rows put the test's attained level at 0.0499, so nothing is left over to hide an error in.
    """
    levels = [(0.9, 50_000, 0), (0.8, 10_000, 0), (0.7, 10_000, 0), (0.5, 15_000, _wrong(0.01)), (0.3, 15_000, 0)]
    return _steps("jump from 0 to just above the risk", levels, risks=_ONE, rows=1049)


def jumps() -> Scenario:
    """Four promises together, half of delta for the second; the true risk jumps to just above each in turn."""
    above = [0, *(_wrong(risk) for risk in _FOUR.values)]
    levels = [(0.9 - 0.2 * i, 20_000, now - before) for i, (before, now) in enumerate(pairwise(above))]
    return _steps("four promises, a jump just above each", [(0.95, 20_000, 0), *levels], risks=_FOUR, rows=1500)


def _wrong(risk: float) -> int:
    return round((risk + JUST_ABOVE) * _ROWS)


def _steps(name: str, levels: Sequence[tuple[float, int, int]], *, risks: Risks, rows: int) -> Scenario:
    """One inner exit; `levels` are (confidence, rows, of these wrong), falling in confidence, `_ROWS` in all."""
    confidences = np.concatenate([np.full(count, level) for level, count, _ in levels])
    early = np.concatenate([np.arange(count) < wrong for _, count, wrong in levels]).astype(np.int64)
    labels = np.stack([early, np.zeros_like(early)], axis=1)
    path = _path(np.linspace(0.99, 0.01, 99), inner=1)
    return Scenario(name, ExitRows(confidences[:, None], labels), path, risks, rows, depths=(0.1, 1.0))


def _path(levels: np.ndarray, *, inner: int) -> Path:
    return Path(thresholds=np.repeat(levels[:, None], inner, axis=1), offsets=(0.0,) * inner)


def wave() -> Scenario:
    """At each of 20 steps other rows are wrong, always just above the promise: going on after a failure breaks it.

    Two inner exits: group k meets the second exit at step k, where it is wrong, and the first exit one step later,
    where it is right.
    """
    groups, wrong = 20, _wrong(0.01)
    levels = np.linspace(0.9, 0.1, groups + 1)
    group = np.repeat(np.arange(groups), wrong)
    rest = _ROWS - len(group)
    second = np.concatenate([levels[group], np.full(rest, 0.05)])
    first = np.concatenate([levels[group + 1], np.full(rest, 0.05)])
    labels = np.zeros((_ROWS, 3), dtype=np.int64)
    labels[: len(group), 1] = 1
    population = ExitRows(np.stack([first, second], axis=1), labels)
    path = _path(np.concatenate([[0.99], levels[:-1]]), inner=2)
    return Scenario("other rows wrong at every step", population, path, _ONE, 1049, depths=(0.1, 0.5, 1.0))


def _learned(seed: int, *, size: int = _ROWS) -> ExitRows:
    """Two inner exits that err more where they are less sure, the second less than the first."""
    rng = np.random.default_rng(seed)
    ease = rng.beta(2, 1, size=size)
    noise = rng.normal(scale=0.08, size=(size, 2))
    confidences = np.clip(np.stack([ease, ease**0.5], axis=1) + noise, 0.0, 1.0)
    wrong = rng.random((size, 2)) < np.stack([0.5 * (1 - ease) ** 2, 0.25 * (1 - ease) ** 2], axis=1)
    return ExitRows(confidences, np.concatenate([wrong, np.zeros((size, 1))], axis=1).astype(np.int64))


def smooth() -> Scenario:
    """Risk that grows smoothly along a path of two exits, four promises, the path chosen once from other rows."""
    population, depths = _learned(1), (0.1, 0.5, 1.0)
    other = population.take(np.random.default_rng(2).integers(_ROWS, size=500))
    path = choose_path(other, depths=depths, risks=_FOUR.values)
    return Scenario("smooth risk, two exits, four promises", population, path, _FOUR, 1000, depths)


def whole() -> Scenario:
    """The whole procedure in every run: the path is chosen on split A, then certified on split B."""
    depths = (0.1, 0.5, 1.0)
    name = "whole procedure, path chosen anew in each run"
    return Scenario(name, _learned(3, size=10_000), None, _FOUR, 700, depths, rows_a=300)


def few_rows() -> Scenario:
    """Too few rows for the tighter promises: they are not offered."""
    population, depths = _learned(4), (0.1, 0.5, 1.0)
    path = choose_path(population.take(np.arange(500)), depths=depths, risks=_FOUR.values)
    return Scenario("too few rows for the tight promises", population, path, _FOUR, 200, depths)
