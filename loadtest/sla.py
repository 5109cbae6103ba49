"""Clauses of a service level, held against a run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from loadtest.record import Sample
from loadtest.scenario import Goodput, Kind, Sla
from loadtest.summary import Summary, summarise, within


@dataclass(frozen=True, slots=True)
class Verdict:
    """One clause: what it wanted, what was found. `least`: the figure must not be below; else not above."""

    clause: str
    wanted: float
    found: float
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds; a figure that could not be measured (NaN) does not."""
        return self.found >= self.wanted if self.least else self.found <= self.wanted


def judge(sla: Sla, sample: Sample, summary: Summary) -> tuple[Verdict, ...]:
    """Every clause that the SLA has, in its order."""
    return tuple(_verdicts(sla, sample, summary))


def _verdicts(sla: Sla, sample: Sample, summary: Summary) -> Iterator[Verdict]:
    latency = summary.latency_ms
    # where nothing was refused, no refusal was slow
    refused = 0.0 if math.isnan(summary.refused_ms.p99) else summary.refused_ms.p99
    at_most = {
        "p50_ms": latency.p50,
        "p90_ms": latency.p90,
        "p99_ms": latency.p99,
        "p999_ms": latency.p999,
        "shed_p99_ms": refused,
        "error_rate": summary.error_rate,
        "failure_rate": summary.failure_rate,
    }
    for clause, found in at_most.items():
        wanted = getattr(sla, clause)
        if wanted is not None:
            yield Verdict(clause, wanted, found)
    if sla.min_rate_per_s is not None:
        yield Verdict("min_rate_per_s", sla.min_rate_per_s, summary.ok_per_s, least=True)
    if sla.goodput is not None:
        yield from _goodput(sla.goodput, sample, summary.seconds)
    if sla.min_accuracy is not None:
        yield Verdict("min_accuracy", sla.min_accuracy, summary.accuracy, least=True)


def _goodput(wanted: Goodput, sample: Sample, seconds: float) -> Iterator[Verdict]:
    good, bound = within(sample, wanted.within_ms), f"goodput within {wanted.within_ms:g} ms"
    if wanted.share is not None:
        yield Verdict(f"{bound}, share", wanted.share, good / len(sample) if len(sample) else math.nan, least=True)
    if wanted.per_s is not None:
        yield Verdict(f"{bound}, per s", wanted.per_s, good / seconds, least=True)


def judge_kinds(mixture: Sequence[Kind], sample: Sample, seconds: float) -> tuple[Verdict, ...]:
    """The clauses of the kinds that have their own, each on its own requests and named after its kind."""
    verdicts: list[Verdict] = []
    for place, kind in enumerate(mixture):
        if kind.sla is None:
            continue
        own = sample.where(sample.kind == place)
        found = judge(kind.sla, own, summarise(own, seconds))
        verdicts += [replace(verdict, clause=f"{kind.name}: {verdict.clause}") for verdict in found]
    return tuple(verdicts)
