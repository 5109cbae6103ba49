"""A run in figures: counts, percentiles, where the time went."""

import math
from dataclasses import dataclass

import numpy as np

from loadtest.record import LATE, LOST, NOT_READY, SHED, Floats, Sample
from loadtest.stats import percentile


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Nearest-rank percentiles and the largest value; NaN where there was nothing, infinity where answers were lost."""

    p50: float
    p90: float
    p99: float
    p999: float
    most: float


def percentiles_of(values: Floats) -> Percentiles:
    """Of values in any order; NaN entries (not told) are left out."""
    told = values[~np.isnan(values)]
    shares = (0.5, 0.9, 0.99, 0.999, 1.0)
    return Percentiles(*(percentile(told, share) for share in shares))


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by how they ended: each is in exactly one.

    ok: 2xx. shed: 429. late: 504. unready: 503. failed: every other answer. lost: no answer.
    """

    sent: int
    ok: int
    shed: int
    late: int
    unready: int
    failed: int
    lost: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One run, or one kind's part of it. Rates are a second; times in milliseconds.

    Attributes:
        seconds: measured, without the warm-up.
        offered_per_s: requests meant to be sent. ok_per_s, items_per_s: answered with success, and the texts in them.
        latency_ms: from the intended moment, of answered requests; lost ones are infinite.
        refused_ms: latency of the refusals (429).
        queue_ms, run_ms, total_ms: from the answers' headers.
        lag_ms: by how much the generator was late.
        accuracy: share of judged items that were right; NaN without labels.
    """

    seconds: float
    offered_per_s: float
    ok_per_s: float
    items_per_s: float
    counts: Counts
    latency_ms: Percentiles
    refused_ms: Percentiles
    queue_ms: Percentiles
    run_ms: Percentiles
    total_ms: Percentiles
    lag_ms: Percentiles
    accuracy: float

    @property
    def error_rate(self) -> float:
        """Share of the requests that were not answered with success, whatever the reason."""
        return (self.counts.sent - self.counts.ok) / self.counts.sent if self.counts.sent else math.nan

    @property
    def failure_rate(self) -> float:
        """Share of the requests that were lost, or answered with an error that is no refusal (429, 503, 504)."""
        return (self.counts.failed + self.counts.lost) / self.counts.sent if self.counts.sent else math.nan


def summarise(sample: Sample, seconds: float) -> Summary:
    """A run's figures.

    Args:
        sample: without the warm-up.
        seconds: how long it was measured.
    """
    ok, judged = sample.ok, int(sample.judged.sum())
    return Summary(
        seconds=seconds,
        offered_per_s=len(sample) / seconds,
        ok_per_s=float(ok.sum()) / seconds,
        items_per_s=float(sample.items[ok].sum()) / seconds,
        counts=_counts(sample),
        latency_ms=percentiles_of(sample.felt_ms),
        refused_ms=percentiles_of(sample.latency_ms[sample.status == SHED]),
        queue_ms=percentiles_of(sample.queue_ms[ok]),
        run_ms=percentiles_of(sample.run_ms[ok]),
        total_ms=percentiles_of(sample.total_ms[ok]),
        lag_ms=percentiles_of(sample.lag * 1e3),
        accuracy=float(sample.right.sum()) / judged if judged else math.nan,
    )


def _counts(sample: Sample) -> Counts:
    sent, ok = len(sample), int(sample.ok.sum())
    shed, late, unready, lost = (int((sample.status == status).sum()) for status in (SHED, LATE, NOT_READY, LOST))
    return Counts(sent, ok, shed, late, unready, sent - ok - shed - late - unready - lost, lost)


def within(sample: Sample, bound_ms: float) -> int:
    """Requests answered with success within a bound of their intended moment."""
    return int((sample.ok & (sample.latency_ms <= bound_ms)).sum())
