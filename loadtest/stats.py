"""The statistics of the load tests: percentiles, bounds of ratios and slopes, exact binomial tests. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


def percentile(values: Floats, share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `share` of all do not exceed.

    Args:
        values: in any order; infinities are values like others.
        share: above 0, at most 1.
    Returns: NaN where there are no values.

    >>> percentile(np.arange(1.0, 101.0), 0.99)
    99.0
    """
    if not len(values):
        return math.nan
    rank = max(math.ceil(share * len(values) - 1e-9), 1)
    return float(np.partition(values, rank - 1)[rank - 1])


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, for probabilities from 0.5 on.

    Args:
        probability: 0.5 to 0.9999.
        freedom: degrees of freedom, at least 1.

    >>> round(student_t(0.95, 9), 3)
    1.833
    """
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cumulative(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_cumulative(value: float, freedom: int) -> float:
    """P(T <= value), value >= 0. Source: Abramowitz and Stegun, 26.7.3 and 26.7.4 (exact, finite sums)."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine * cosine * 2 * k / (2 * k + 1)
        inner = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(1, freedom // 2 + 1):
            total += term
            term *= cosine * cosine * (2 * k - 1) / (2 * k)
        inner = math.sin(angle) * total
    return 0.5 + inner / 2


@dataclass(frozen=True, slots=True)
class RatioBound:
    """A ratio of paired measurements: its geometric mean, and bounds that hold with `CONFIDENCE` each (one-sided)."""

    pairs: int
    ratio: float
    low: float
    high: float


def ratio_bound(first: Sequence[float], second: Sequence[float]) -> RatioBound:
    """How many times `second` the `first` is, from the t distribution of the paired log-ratios.

    Args:
        first, second: positive, measured in turn; the i-th of both make a pair.
    Returns: with one pair the bounds are 0 and infinity.
    Raises: ValueError: other lengths, none, or a number that is not positive.
    """
    if not first or len(first) != len(second) or min(*first, *second) <= 0:
        raise ValueError("ratios need pairs of positive numbers")
    logs = np.log(np.asarray(first, dtype=np.float64)) - np.log(np.asarray(second, dtype=np.float64))
    mean, pairs = float(logs.mean()), len(logs)
    if pairs == 1:
        return RatioBound(1, math.exp(mean), 0.0, math.inf)
    error = float(logs.std(ddof=1)) / math.sqrt(pairs) * student_t(CONFIDENCE, pairs - 1)
    return RatioBound(pairs, math.exp(mean), math.exp(mean - error), math.exp(mean + error))


def at_least(errors: int, rows: int, share: float) -> float:
    """P(X >= errors) for X binomial(rows, share): the exact test's p-value against "the share is at most so much".

    >>> round(at_least(2, 2, 0.5), 6)
    0.25
    """
    return min(1.0, max(0.0, 1.0 - sum(_binomial(k, rows, share) for k in range(errors))))


def _binomial(k: int, rows: int, share: float) -> float:
    if share in (0.0, 1.0):
        return float(k == rows * share)
    chosen = math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
    return math.exp(chosen + k * math.log(share) + (rows - k) * math.log1p(-share))


def upper_share(errors: int, rows: int) -> float:
    """The exact (Clopper-Pearson) upper bound of a share, one-sided at `CONFIDENCE`."""
    if errors >= rows:
        return 1.0
    low, high = errors / rows, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        too_low = 1.0 - at_least(errors + 1, rows, middle) > 1 - CONFIDENCE
        low, high = (middle, high) if too_low else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class SlopeBound:
    """A straight line through measurements: its value at the start, its slope per second, the slope's upper bound."""

    start: float
    slope: float
    high: float


def slope_bound(seconds: Floats, values: Floats, *, blocks: int = 20) -> SlopeBound:
    """Fit a line and bound its slope from above, one-sided at `CONFIDENCE`.

    Neighbouring samples of one process are alike, so means over `blocks` equal parts are fitted, not samples.

    Raises: ValueError: fewer than three blocks' worth of samples.
    """
    if len(seconds) < blocks or blocks < 3:
        raise ValueError(f"a slope needs at least {max(blocks, 3)} samples")
    x = np.array([part.mean() for part in np.array_split(seconds, blocks)])
    y = np.array([part.mean() for part in np.array_split(values, blocks)])
    centred = x - x.mean()
    spread = float((centred**2).sum())
    slope = float((centred * y).sum()) / spread
    start = float(y.mean() - slope * x.mean())
    residual = float(((y - start - slope * x) ** 2).sum()) / (blocks - 2)
    return SlopeBound(start, slope, slope + student_t(CONFIDENCE, blocks - 2) * math.sqrt(residual / spread))
