"""Exits with a guarantee: a path of thresholds chosen on split A, certified once on split B.

`docs/guarantee.md` says what is promised. N rows, E exits (the last is full depth), K steps of a path; leading
dims "..." are independent calibration sets, so that the simulation runs the very code that certifies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta, binom

from service.bundle.manifest import OperatingPoint

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
StoppingRule = Callable[[Counts, int, float, float], Counts]
"""Errors [..., K], rows, risk and level to the last step certified [...], or -1."""

NOBODY = 2.0
"""A threshold no confidence reaches; the manifest writes it as null."""

_OFFSETS = (-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
_WORTH = 0.98
_EDGE = 1e-9
_DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class ExitRows:
    """What the exits said about some rows; all that calibration needs to know of them.

    confidences: float64 [..., N, E-1], the inner exits', in 0 to 1.
    labels: int64 [..., N, E], the label each exit would answer; the last column is the reference.
    """

    confidences: Floats
    labels: Counts

    def __post_init__(self) -> None:
        inner = (*self.labels.shape[:-1], self.labels.shape[-1] - 1)
        if self.confidences.shape != inner:
            raise ValueError(f"confidences are {self.confidences.shape}, the labels' inner exits {inner}")
        if not np.isfinite(self.confidences).all():
            raise ValueError("a confidence is not finite")

    @property
    def rows(self) -> int:
        """N."""
        return int(self.labels.shape[-2])

    @property
    def disagreement(self) -> NDArray[np.bool_]:
        """bool [..., N, E-1]: the inner exit's label is not the reference's."""
        return np.asarray(self.labels[..., :-1] != self.labels[..., -1:])

    def take(self, index: Counts) -> "ExitRows":
        """The rows at `index` (int [...]), which becomes the leading dims; from rows without leading dims."""
        return ExitRows(confidences=self.confidences[index], labels=self.labels[index])


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A one-dimensional family of exit rules, fixed before split B is looked at.

    thresholds: float64 [K, E-1], safest step first, never rising along K; above 1 nobody leaves.
    offsets: one per inner exit, in logits: step k's thresholds are `sigmoid(level_k + offsets)`.
    """

    thresholds: Floats
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.thresholds.ndim != 2 or not len(self.thresholds):
            raise ValueError("a path is [steps, inner exits] with at least one step")
        if (np.diff(self.thresholds, axis=0) > 0).any():
            raise ValueError("a path runs from safest to boldest: thresholds never rise")

    @property
    def form(self) -> Literal["shared", "offset"]:
        """Whether all exits share one threshold."""
        return "offset" if any(self.offsets) else "shared"


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Per step of a path: `errors` int64 [..., K] and `leaving` int64 [..., K, E], rows by the exit they leave at."""

    errors: Counts
    leaving: Counts


def tally(path: Path, rows: ExitRows) -> Tally:
    """Count, for every step, who leaves where and how many answers differ from the reference's.

    An error is counted for the whole pipeline: the label at the exit taken is not the full-depth label.
    """
    steps, inner = path.thresholds.shape
    *sets, n, _ = rows.labels.shape
    runs = int(np.prod(sets, dtype=np.int64))
    base = np.repeat(np.arange(runs) * (steps + 1), n)
    taken_from = np.full(runs * n, steps)
    errors = np.zeros(runs * (steps + 1))
    leaving = np.zeros((runs, steps, inner + 1), dtype=np.int64)
    wrong = rows.disagreement.reshape(runs * n, inner)
    for exit_index in range(inner):
        # an item leaves here from the first step whose threshold it meets until an earlier exit takes it
        met = _first_step_met(path.thresholds[:, exit_index], rows.confidences[..., exit_index].ravel())
        start = np.minimum(met, taken_from)
        change = _changes(base + start, base + taken_from, None, runs * (steps + 1))
        errors += _changes(base + start, base + taken_from, wrong[:, exit_index], runs * (steps + 1))
        leaving[:, :, exit_index] = np.cumsum(change.reshape(runs, -1), axis=1)[:, :steps]
        taken_from = start
    leaving[:, :, inner] = n - leaving[:, :, :inner].sum(axis=2)
    total = np.cumsum(errors.reshape(runs, -1), axis=1)[:, :steps].astype(np.int64)
    return Tally(errors=total.reshape(*sets, steps), leaving=leaving.reshape(*sets, steps, inner + 1))


def _first_step_met(thresholds: Floats, confidences: Floats) -> Counts:
    return np.searchsorted(-thresholds, -confidences, side="left").astype(np.int64)


def _changes(start: Counts, end: Counts, which: NDArray[np.bool_] | None, size: int) -> Floats:
    """+1 where an interval starts and -1 where it ends, for the intervals picked out by `which`."""
    if which is not None:
        start, end = start[which], end[which]
    up, down = np.bincount(start, minlength=size), np.bincount(end, minlength=size)
    return (up - down).astype(np.float64)


def exit_taken(rows: ExitRows, thresholds: Sequence[float | None]) -> Counts:
    """int64 [N]: the exit each row leaves at, by the service's rule (first exit whose threshold is met)."""
    taken = np.full(rows.rows, len(thresholds), dtype=np.int64)
    for index in reversed(range(len(thresholds))):
        threshold = thresholds[index]
        if threshold is not None:
            taken[rows.confidences[:, index] >= threshold] = index
    return taken


def fixed_sequence(errors: Counts, rows: int, risk: float, level: float) -> Counts:
    """Learn-then-Test by a fixed sequence: how far a path may be followed.

    Tests "the true risk of step k is above `risk`" from the safest step on, with the exact binomial p-value, each at
    the whole `level`, and stops at the first that is not rejected. The chance that any step it passes has a true
    risk above `risk` is at most `level`, whatever the shape of the risk along the path.

    Args:
        errors: int [..., K], on `rows` rows drawn independently of the path.
    Returns: int [...]: the last step passed before the first failure; -1 where the first step fails.
    Source: Angelopoulos et al. 2021, arXiv:2110.01052, section 2.3.

    >>> fixed_sequence(np.array([0, 0, 4, 11, 3]), rows=1000, risk=0.01, level=0.05)
    np.int64(2)
    """
    passed = p_values(errors, rows, risk) <= level
    # subtle: the first failure ends the sequence; a later step that would pass does not count
    return np.asarray(np.logical_and.accumulate(passed, axis=-1).sum(axis=-1) - 1)[()]


def p_values(errors: Counts, rows: int, risk: float) -> Floats:
    """P(at most `errors` errors on `rows` rows) if the true risk were `risk`; float64, the shape of `errors`."""
    return _cdf(rows, risk)[errors]


@lru_cache(maxsize=64)
def _cdf(rows: int, risk: float) -> Floats:
    table = np.asarray(binom.cdf(np.arange(rows + 1), rows, risk), dtype=np.float64)
    table.flags.writeable = False
    return table


@dataclass(frozen=True, slots=True)
class Risks:
    """What is to be certified together: each risk, with its part of `delta`, fixed before any row is seen.

    favoured: this one gets half of `delta` and the others share the rest equally (the default point deserves the
        power); None, or the only one: equal parts.
    """

    values: tuple[float, ...]
    delta: float
    favoured: float | None = None

    def __post_init__(self) -> None:
        if not self.values or not all(0 < value < 1 for value in (*self.values, self.delta)):
            raise ValueError("risks and delta must lie between 0 and 1")

    def levels(self) -> tuple[tuple[float, float], ...]:
        """(risk, its part of delta), risks rising; the parts sum to delta.

        >>> Risks((0.01, 0.02, 0.05), delta=0.04, favoured=0.01).levels()
        ((0.01, 0.02), (0.02, 0.01), (0.05, 0.01))
        """
        values = sorted(set(self.values))
        if self.favoured not in values or len(values) == 1:
            return tuple((value, self.delta / len(values)) for value in values)
        rest = self.delta / 2 / (len(values) - 1)
        return tuple((value, self.delta / 2 if value == self.favoured else rest) for value in values)


def certified_steps(errors: Counts, rows: int, risks: Risks, *, rule: StoppingRule = fixed_sequence) -> Counts:
    """How far along the path each risk is certified, all together.

    Args:
        errors: int [..., K], on `rows` rows.
        rule: `fixed_sequence`; the simulation's tests pass wrong ones.
    Returns: int [..., R], risks rising; -1 where not even the first step passes. A step certified for a risk is so
        for every larger one, so the steps never fall along R.
    """
    steps = [rule(errors, rows, risk, level) for risk, level in risks.levels()]
    return np.asarray(np.maximum.accumulate(np.stack(steps, axis=-1), axis=-1))


def certify(path: Path, rows: ExitRows, *, depths: Sequence[float], risks: Risks) -> tuple[OperatingPoint, ...]:
    """The operating points that split B certifies, all together at confidence 1 - delta.

    Each risk has a sequence of its own along the same path, at its part of delta. A larger risk never gets safer
    thresholds. A risk for which not even the first step passes is not offered.

    Args:
        path: chosen without these rows.
        rows: split B, N rows, used for nothing else.
        depths: E shares of the full compute, the last 1.
    Returns: the points, risks rising; () when there are too few rows for any.
    """
    counted = tally(path, rows)
    steps = certified_steps(counted.errors, rows.rows, risks)
    offered = zip(risks.levels(), steps.tolist(), strict=True)
    return tuple(_point(path, counted, risk, step, depths) for (risk, _), step in offered if step >= 0)


def _point(path: Path, counted: Tally, risk: float, step: int, depths: Sequence[float]) -> OperatingPoint:
    rows, errors = int(counted.leaving[step].sum()), int(counted.errors[step])
    shares = counted.leaving[step] / rows
    return OperatingPoint(
        risk=risk,
        thresholds=tuple(None if t > 1 else float(t) for t in path.thresholds[step]),
        rows=rows,
        errors=errors,
        p_value=float(p_values(counted.errors[step], rows, risk)),
        exit_shares=tuple(float(share) for share in shares),
        mean_depth=min(1.0, float(shares @ np.asarray(depths))),
    )


def choose_path(rows: ExitRows, *, depths: Sequence[float], risks: Sequence[float], max_steps: int = 256) -> Path:
    """Choose the family of rules and its grid on split A alone.

    The plain candidate is one threshold shared by all exits. The others move each later exit's threshold by a
    constant in logits. An offset is taken only where it lowers the mean depth reached at the risks, averaged, by
    2% or more on split A: with few rows a smaller gain is noise.
    """
    inner = rows.confidences.shape[-1]
    shared = _grid(rows, offsets=(0.0,) * inner, max_steps=max_steps)
    candidates = [_grid(rows, offsets=(0.0, *rest), max_steps=max_steps) for rest in _later_offsets(inner)]
    best = min(candidates, key=lambda path: _depth_reached(path, rows, depths=depths, risks=risks), default=shared)
    gain = _depth_reached(best, rows, depths=depths, risks=risks)
    return best if gain < _WORTH * _depth_reached(shared, rows, depths=depths, risks=risks) else shared


def _later_offsets(inner: int) -> list[tuple[float, ...]]:
    """Offsets of all inner exits but the first; with four or more inner exits, one common to all of them."""
    if inner <= 3:
        return [offsets for offsets in product(_OFFSETS, repeat=max(0, inner - 1)) if any(offsets)]
    return [(offset,) * (inner - 1) for offset in _OFFSETS if offset]


def _grid(rows: ExitRows, *, offsets: tuple[float, ...], max_steps: int) -> Path:
    """Steps at quantiles of the level at which a row meets an exit; the first step lets nobody leave."""
    met = logit(np.clip(rows.confidences, _EDGE, 1 - _EDGE)) - np.asarray(offsets)
    first = np.full((1, len(offsets)), NOBODY)
    if not met.size:
        return Path(thresholds=first, offsets=offsets)
    ordered = np.sort(met, axis=None)
    levels = ordered[np.linspace(ordered.size - 1, 0, max_steps - 1).astype(np.int64)]
    thresholds = np.round(expit(levels[:, None] + np.asarray(offsets)), _DECIMALS)
    steps = np.concatenate([first, thresholds])
    new = np.concatenate([[True], (np.diff(steps, axis=0) != 0).any(axis=1)])
    return Path(thresholds=steps[new], offsets=offsets)


def _depth_reached(path: Path, rows: ExitRows, *, depths: Sequence[float], risks: Sequence[float]) -> float:
    """Mean over `risks` of the mean depth at the last step before the share of errors first exceeds the risk."""
    counted = tally(path, rows)
    depth = counted.leaving @ np.asarray(depths) / rows.rows
    within = counted.errors[:, None] <= np.asarray(risks) * rows.rows
    last = np.logical_and.accumulate(within, axis=0).sum(axis=0) - 1
    return float(depth[last].mean())


@dataclass(frozen=True, slots=True)
class LabelBound:
    """Of `rows` answers with this label, `errors` differ from full depth; `upper` bounds the true share."""

    label: str
    rows: int
    errors: int
    upper: float


def label_bounds(
    answered: Counts, reference: Counts, *, labels: Sequence[str], level: float = 0.05, min_rows: int = 30
) -> tuple[LabelBound, ...]:
    """Upper bounds on the disagreement by predicted label, where rows allow (Clopper-Pearson, one-sided).

    Each holds on its own with probability 1 - `level`, not all together, and only on rows that took no part in
    choosing the thresholds: give the test split's, not split B's.

    Args:
        answered: int [N], the labels at the exits taken.
        reference: int [N], the full-depth labels.
        min_rows: labels answered less often than this are left out.
    """
    found = []
    for index, label in enumerate(labels):
        chosen = answered == index
        rows, errors = int(chosen.sum()), int((reference[chosen] != index).sum())
        if rows >= min_rows:
            upper = 1.0 if errors == rows else float(beta.ppf(1 - level, errors + 1, rows - errors))
            found.append(LabelBound(label=label, rows=rows, errors=errors, upper=upper))
    return tuple(found)
