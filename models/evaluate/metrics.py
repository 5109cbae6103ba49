"""Measures of quality. N rows, C labels; labels are int [N]."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, bootstrap
from sklearn.metrics import accuracy_score, f1_score

Labels = NDArray[np.integer]
Measure = Callable[[Labels, Labels], float]

ECE_BINS = 15
RESAMPLES = 2_000
EXACT_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and its interval at the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


def accuracy(predicted: Labels, gold: Labels) -> float:
    """Share of rows with the right label."""
    return float(accuracy_score(gold, predicted))


def macro_f1(predicted: Labels, gold: Labels) -> float:
    """F1 averaged over the labels that occur in `gold`; a label never predicted counts 0."""
    return float(f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0.0))


def agreement(first: Labels, second: Labels) -> float:
    """Share of rows on which both give the same label."""
    return accuracy(first, second)


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_], *, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |share right - mean confidence| by equal-width bin, weighted by rows.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    curve = reliability(confidence, right, bins=bins)
    weights = np.array([each.rows for each in curve]) / max(1, len(right))
    gaps = np.array([abs(each.right - each.confidence) for each in curve])
    return float(weights @ gaps)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of the calibration diagram that holds rows: mean confidence and share right."""

    rows: int
    confidence: float
    right: float


def reliability(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], *, bins: int = ECE_BINS
) -> tuple[ReliabilityBin, ...]:
    """The calibration diagram's bins, rising in confidence; empty bins are left out.

    Args:
        confidence: [N], in 0 to 1.
        right: bool [N].
    """
    place = np.clip((np.asarray(confidence, dtype=np.float64) * bins).astype(np.int64), 0, bins - 1)
    found = []
    for index in np.unique(place):
        inside = place == index
        mean = float(np.mean(confidence[inside], dtype=np.float64))
        found.append(ReliabilityBin(rows=int(inside.sum()), confidence=mean, right=float(right[inside].mean())))
    return tuple(found)


def retention(student: Labels, teacher: Labels, gold: Labels, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Student accuracy ÷ teacher accuracy, with a paired bootstrap interval (percentile, 95%) over the rows.

    Raises: ValueError: the teacher is right on no row, or there are fewer than two rows.
    """
    right = np.asarray(student == gold, dtype=np.float64), np.asarray(teacher == gold, dtype=np.float64)
    if len(gold) < 2 or not right[1].any():
        raise ValueError("retention needs two rows, and a teacher that is right on one")
    found = bootstrap(
        right,
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value=float(_ratio(*right)), low=float(found.low), high=float(found.high))


def _ratio(student: NDArray[np.float64], teacher: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(student.mean(axis=axis) / np.maximum(teacher.mean(axis=axis), 1e-12))


@dataclass(frozen=True, slots=True)
class DisagreementTest:
    """One-sided exact test of "the true disagreement is at most `risk`" on fresh rows."""

    errors: int
    rows: int
    risk: float
    p_value: float

    @property
    def rejected(self) -> bool:
        """Whether the promise is refuted at 5%."""
        return self.p_value <= EXACT_LEVEL


def exact_test(errors: int, rows: int, *, risk: float) -> DisagreementTest:
    """P(`errors` or more of `rows`) if the true disagreement were `risk`; rejected at 5%.

    >>> exact_test(41, 3080, risk=0.01).rejected, exact_test(40, 3080, risk=0.01).rejected
    (True, False)
    """
    return DisagreementTest(errors=errors, rows=rows, risk=risk, p_value=float(binom.sf(errors - 1, rows, risk)))
