"""The generators on a clock that jumps: nothing here takes time."""

import asyncio

import numpy as np
import pytest

from loadtest.arrivals import constant
from loadtest.generator import ClosedLoop, OpenLoop, cpu_seconds, undisturbed
from loadtest.shots import Assigned, Cycle, Judgement, Shot
from loadtest.stats import percentile
from loadtest.wire import LOST, Answer

SERVICE_S = 0.001
STALL = (1.0, 2.0)


class StallingServer:
    """One worker, first come first served, a millisecond a request; once, for a second, it starts nothing."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0
        self.sent: list[bytes] = []

    def send(self, raw, done, *, want_body=False, kind=0) -> None:
        start = max(self._loop.time(), self._free_at)
        if STALL[0] <= start < STALL[1]:
            start = STALL[1]
        self._free_at = start + SERVICE_S
        self.sent.append(raw)
        self._loop.call_at(self._free_at, done, Answer(200, body=b"yes" if want_body else None))


def shots():
    return Cycle([Shot(b"r")])


async def open_loop(rate, seconds):
    loop = asyncio.get_running_loop()
    run = OpenLoop(constant(rate, seconds), shots(), StallingServer(), clock=loop.time, spin_s=0.0)
    return (await run.run()).sample()


async def closed_loop(clients, seconds):
    loop = asyncio.get_running_loop()
    return (await ClosedLoop(clients, shots(), StallingServer(), clock=loop.time).run(seconds)).sample()


def test_an_open_loop_shows_a_stall_in_its_percentiles(virtual):
    """A hundred of a thousand requests were meant to leave in the stalled second: the k-th waits 1.001 - 0.009 k s."""
    sample = virtual(open_loop(100.0, 10.0))
    assert len(sample) == 1000
    assert percentile(sample.latency_ms, 0.5) == pytest.approx(1.0, abs=0.01)
    assert percentile(sample.latency_ms, 1.0) == pytest.approx(1001.0, abs=1.0)
    assert percentile(sample.latency_ms, 0.99) == pytest.approx(1001.0 - 9.0 * 10, abs=2.0)
    assert np.abs(sample.lag).max() < 1e-6


def test_a_closed_loop_hides_the_same_stall(virtual):
    """Why closed loops are for peaks only: its one client waits once, and does not send meanwhile."""
    sample = virtual(closed_loop(1, 10.0))
    assert percentile(sample.latency_ms, 0.99) == pytest.approx(1.0, abs=0.01)
    assert percentile(sample.latency_ms, 1.0) == pytest.approx(1000.0, abs=3.0)


def test_a_closed_loop_keeps_all_its_clients_busy(virtual):
    sample = virtual(closed_loop(4, 0.5))
    assert len(sample) == pytest.approx(500, abs=6)
    assert np.median(sample.latency_ms) == pytest.approx(4.0, abs=0.01)


def test_a_generator_that_is_held_up_says_how_late_it_was(virtual):
    async def held_up():
        loop = asyncio.get_running_loop()
        run = OpenLoop(constant(100.0, 0.1), shots(), StallingServer(), clock=loop.time, spin_s=0.0)

        def hold() -> None:
            loop.now += 0.05

        loop.call_at(0.035, hold)
        return (await run.run()).sample()

    sample = virtual(held_up())
    assert sample.lag.max() == pytest.approx(0.045, abs=1e-3)
    # the latency counts from the intended moment, so the lag is in it
    assert sample.latency_ms.max() >= 45.0


def test_close_to_a_moment_the_loop_turns_without_sleeping(virtual):
    async def spinning():
        ticks = iter(np.arange(0.0, 10.0, 0.0001).tolist())
        run = OpenLoop(constant(1000.0, 0.01), shots(), StallingServer(), clock=lambda: next(ticks), spin_s=1.0)
        return (await run.run()).sample()

    sample = virtual(spinning())
    assert len(sample) == 10 and sample.lag.max() < 0.0005


def test_an_open_loop_of_nothing_ends_at_once(virtual):
    assert len(virtual(open_loop(1.0, 0.0))) == 0


def test_answers_are_judged_where_there_is_something_to_judge_by(virtual):
    async def judged():
        loop = asyncio.get_running_loop()
        seen = []

        def judge(body):
            seen.append(body)
            return Judgement(1, 2)

        run = OpenLoop(
            constant(10.0, 0.3),
            Cycle([Shot(b"a", items=2, judge=judge), Shot(b"b")]),
            StallingServer(),
            clock=loop.time,
            spin_s=0.0,
        )
        return (await run.run()).sample(), seen

    sample, seen = virtual(judged())
    assert seen == [b"yes", b"yes"]
    assert (sample.right.tolist(), sample.judged.tolist()) == ([1, 0, 1], [2, 0, 2])
    assert sample.items.tolist() == [2, 1, 2]


def test_lost_answers_are_not_judged(virtual):
    async def lost():
        loop = asyncio.get_running_loop()

        class Loser:
            def send(self, raw, done, *, want_body=False, kind=0):
                loop.call_soon(done, LOST)

        cycle = Cycle([Shot(b"a", judge=lambda body: Judgement(1, 1))])
        return (await OpenLoop(constant(10.0, 0.1), cycle, Loser(), clock=loop.time).run()).sample()

    sample = virtual(lost())
    assert sample.judged.tolist() == [0] and sample.felt_ms.tolist() == [float("inf")]


def test_each_kind_goes_round_its_own_requests():
    first, second = [Shot(b"a"), Shot(b"b")], [Shot(b"c", 1)]
    taken = Assigned(np.array([0, 1, 0, 0, 1]), [first, second])
    assert [taken.take(place).raw for place in range(6)] == [b"a", b"c", b"b", b"a", b"c", b"a"]


def test_nothing_is_collected_while_a_run_lasts():
    import gc

    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert cpu_seconds() > 0
