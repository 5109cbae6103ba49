"""Samples, summaries and the clauses held against them, on numbers made by hand."""

import math

import numpy as np
import pytest

from loadtest.record import Recorder, Times
from loadtest.scenario import Goodput, Kind, Sla
from loadtest.shots import Judgement, Shot
from loadtest.sla import judge, judge_kinds
from loadtest.summary import summarise, within
from loadtest.wire import LOST, Answer

SECONDS = 10.0


def sample_of(rows):
    """Rows: (status, latency in ms[, kind]); each was sent at once, at second 1."""
    recorder = Recorder()
    for status, latency_ms, *kind in rows:
        answer = LOST if status == 0 else Answer(status, 1.0, 2.0, 3.0)
        shot = Shot(b"", kind[0] if kind else 0, items=2)
        judgement = Judgement(1, 2) if status == 200 else Judgement()
        recorder.add(shot, Times(1.0, 1.002, 1.0 + latency_ms / 1e3), answer, judgement)
    assert len(recorder) == len(rows)
    return recorder.sample()


ROWS = [(200, ms) for ms in range(1, 97)] + [(429, 1.0), (504, 50.0), (500, 3.0), (0, 9999.0)]


def found(sla, rows=ROWS):
    sample = sample_of(rows)
    return {verdict.clause: verdict for verdict in judge(sla, sample, summarise(sample, SECONDS))}


def test_a_summary_counts_each_request_once():
    summary = summarise(sample_of([*ROWS, (503, 1.0)]), SECONDS)
    counts = summary.counts
    assert (counts.sent, counts.ok, counts.shed, counts.late, counts.unready) == (101, 96, 1, 1, 1)
    assert (counts.failed, counts.lost) == (1, 1)
    assert (summary.offered_per_s, summary.ok_per_s, summary.items_per_s) == pytest.approx((10.1, 9.6, 19.2))
    assert summary.error_rate == pytest.approx(5 / 101) and summary.failure_rate == pytest.approx(2 / 101)
    assert summary.accuracy == 0.5
    assert (summary.queue_ms.p50, summary.run_ms.p50, summary.total_ms.p50) == (1.0, 2.0, 3.0)
    assert summary.lag_ms.p99 == pytest.approx(2.0, rel=1e-3)


def test_percentiles_take_lost_requests_as_infinitely_slow_and_leave_refusals_out():
    summary = summarise(sample_of(ROWS), SECONDS)
    assert summary.latency_ms.p50 == pytest.approx(49.0)
    assert summary.latency_ms.p999 == math.inf
    assert summary.refused_ms.p50 == pytest.approx(1.0)


def test_nothing_sent_is_not_well():
    summary = summarise(sample_of([]), SECONDS)
    assert math.isnan(summary.error_rate) and math.isnan(summary.failure_rate) and math.isnan(summary.latency_ms.p99)
    assert not any(verdict.met for verdict in found(Sla(p99_ms=1e6, error_rate=1.0), []).values())


def test_an_sla_without_clauses_has_no_verdicts():
    assert found(Sla()) == {}


def test_every_clause():
    sla = Sla(
        p50_ms=49.5,
        p90_ms=10,
        p99_ms=1000,
        p999_ms=1000,
        shed_p99_ms=5,
        error_rate=0.04,
        failure_rate=0.01,
        min_rate_per_s=9.6,
        goodput=Goodput(within_ms=50.5, share=0.5, per_s=5.1),
        min_accuracy=0.5,
    )
    verdicts = found(sla)
    assert {clause: verdict.met for clause, verdict in verdicts.items()} == {
        "p50_ms": True,
        "p90_ms": False,
        "p99_ms": False,
        "p999_ms": False,
        "shed_p99_ms": True,
        "error_rate": True,
        "failure_rate": False,
        "min_rate_per_s": True,
        "goodput within 50.5 ms, share": True,
        "goodput within 50.5 ms, per s": False,
        "min_accuracy": True,
    }
    assert verdicts["goodput within 50.5 ms, share"].found == pytest.approx(0.5)


def test_a_bound_is_met_by_equality():
    assert found(Sla(error_rate=0.5), [(200, 1), (500, 1)])["error_rate"].met
    assert within(sample_of([(200, 10.0), (200, 10.1), (429, 1.0)]), 10.0 + 1e-9) == 1


def test_where_nothing_was_refused_no_refusal_was_slow():
    assert found(Sla(shed_p99_ms=1), [(200, 5)])["shed_p99_ms"].met


def test_accuracy_that_cannot_be_known_is_missed():
    assert not found(Sla(min_accuracy=0.1), [(500, 5)])["min_accuracy"].met


def test_a_kind_has_clauses_of_its_own():
    mixture = [
        Kind(name="a", task="classify", texts="t"),
        Kind(name="b", task="classify", texts="t", sla=Sla(p99_ms=5)),
    ]
    (verdict,) = judge_kinds(mixture, sample_of([(200, 100, 0), (200, 4, 1)]), SECONDS)
    assert verdict.clause == "b: p99_ms" and verdict.met


def test_the_warm_up_is_left_out():
    recorder = Recorder()
    for intended in (0.5, 1.0, 1.5):
        recorder.add(Shot(b""), Times(intended, intended, intended + 1), Answer(200), Judgement())
    everything = recorder.sample()
    kept = everything.where(everything.intended >= 1.0)
    assert kept.intended.tolist() == [1.0, 1.5]
    assert np.isnan(kept.queue_ms).all()
