"""The engine: every item ends exactly once, whatever happens to it and whenever."""

import asyncio
import logging
import random
import time

import pytest

from service.engine.engine import Engine
from service.engine.item import ServedStudent
from service.engine.policy import EngineLimits
from service.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    RunFailed,
)
from service.runtime.student import Outcome

NOTHING_HELD = "<Engine requests=0 queued=0 in_flight=0 busy_slots=0 draining>"


async def settled(engine) -> str:
    """What the engine holds once the slots have reported back; it takes no more work then."""
    assert await engine.drain(20)
    return repr(engine)


def exits(results) -> list[int]:
    return [result.outcome.exit_index for result in results]


class TestAnswers:
    async def test_items_leave_where_they_are_sure_and_come_back_in_order(self, make_engine, served, encoded, early):
        engine = make_engine()
        results = await engine.submit(served, encoded(2, 3, 4, 5), policy=early)
        assert exits(results) == [0, 1, 0, 1]
        assert [result.outcome.raw.tolist() for result in results] == [[100, 0], [3, 0], [100, 0], [5, 0]]
        assert all(result.queue_s >= 0 and result.compute_s >= 0 for result in results)
        assert await settled(engine) == NOTHING_HELD

    async def test_no_items_no_results(self, make_engine, served, early):
        assert await make_engine().submit(served, [], policy=early) == []

    async def test_requests_of_different_policies_share_a_batch(
        self, make_engine, runner, served, encoded, early, full_depth
    ):
        engine = make_engine()
        both = await asyncio.gather(
            engine.submit(served, encoded(2), policy=early), engine.submit(served, encoded(4), policy=full_depth)
        )
        assert [exits(results) for results in both] == [[0], [1]]
        assert runner.runs == [(0, (2, 4)), (1, (4,))]

    async def test_those_who_leave_early_do_not_wait_for_their_batch_mates(
        self, make_engine, runner, served, encoded, early
    ):
        engine = make_engine()
        runner.hold()
        sure = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        unsure = asyncio.create_task(engine.submit(served, encoded(3), policy=early))
        assert await runner.begun() == (0, (2, 3))
        runner.let_go(1)
        assert exits(await sure) == [0]
        assert await runner.begun() == (1, (3,))
        assert not unsure.done()
        runner.let_go(1)
        assert exits(await unsure) == [1]

    async def test_the_token_budget_splits_a_request(self, make_engine, runner, served, encoded, early):
        results = await make_engine(token_budget=8).submit(served, encoded(2, 4, 6, 8, 10), policy=early)
        assert exits(results) == [0] * 5
        assert [items for _, items in runner.runs] == [(2, 4), (6, 8), (10,)]

    async def test_an_item_over_the_budget_runs_alone(self, make_engine, served, encoded, early):
        results = await make_engine(token_budget=8).submit(served, encoded(2, tokens=100), policy=early)
        assert exits(results) == [0]

    async def test_a_large_request_lets_a_small_one_pass(self, make_engine, runner, served, encoded, early):
        engine = make_engine(token_budget=8, pace_s=10.0)
        runner.hold()
        large = asyncio.create_task(engine.submit(served, encoded(*range(2, 402, 2)), policy=early))
        await runner.begun()
        small = asyncio.create_task(engine.submit(served, encoded(1000), policy=early))
        await asyncio.sleep(0)
        runner.let_go()
        await small
        await large
        place = next(i for i, (_, items) in enumerate(runner.runs) if 1000 in items)
        assert place == 1
        assert len(runner.runs) > 100

    async def test_a_blocked_slot_does_not_block_another_student(
        self, make_engine, make_runner, served, runner, encoded, early
    ):
        engine = make_engine(slots=2)
        other = ServedStudent("other", 1, make_runner())
        runner.hold()
        blocked = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        assert exits(await engine.submit(other, encoded(4), policy=early)) == [0]
        assert not blocked.done()
        runner.let_go()
        await blocked

    async def test_two_loads_of_a_version_are_never_batched_together(
        self, make_engine, make_runner, served, runner, encoded, early
    ):
        engine = make_engine(slots=2)
        again = ServedStudent("scripted", 1, make_runner())
        await asyncio.gather(
            engine.submit(served, encoded(2), policy=early), engine.submit(again, encoded(4), policy=early)
        )
        assert runner.runs == [(0, (2,))]


class TestObserver:
    async def test_is_told_what_ran(self, make_engine, observer, served, encoded, early):
        await make_engine().submit(served, [*encoded(2, tokens=3), *encoded(3, tokens=5)], policy=early)
        assert observer.named("batch") == [("scripted", "00", 2, 10, 8), ("scripted", "01", 1, 5, 5)]
        assert observer.named("exit") == [("early", 0.5, 1), ("full", 1.0, 1)]
        assert [len(seconds) for (seconds,) in observer.named("queued")] == [2]
        assert observer.named("queue_items")[-1] == ("00", 0)


class TestFailures:
    async def test_the_poisoned_item_fails_alone(self, make_engine, runner, observer, served, encoded, early, caplog):
        engine = make_engine()
        runner.poison = {13: RunFailed("00.onnx: the graph failed")}
        results = await engine.submit(served, encoded(*range(8, 16)), policy=early)
        failed = [result.outcome for result in results if not isinstance(result.outcome, Outcome)]
        assert failed == [runner.poison[13]]
        assert exits(results[:5] + results[6:]) == [0, 1, 0, 1, 0, 0, 1]
        assert observer.named("failed") == [()]
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert await settled(engine) == NOTHING_HELD

    async def test_a_poison_in_a_later_stage_spares_those_who_left(self, make_engine, runner, served, encoded, early):
        runner.poison = {5: RunFailed("broken")}
        runner.begin_error = None
        results = await make_engine().submit(served, encoded(4, 5, 7), policy=early)
        assert isinstance(results[1].outcome, RunFailed)
        assert exits([results[0], results[2]]) == [0, 1]

    async def test_foreign_errors_are_translated(self, make_engine, runner, served, encoded, early):
        runner.poison = {3: ValueError("numpy says no")}
        (result,) = await make_engine().submit(served, encoded(3), policy=early)
        assert isinstance(result.outcome, RunFailed)
        assert result.outcome.__cause__ is runner.poison[3]

    async def test_scores_that_are_not_numbers_fail_their_item(self, make_engine, runner, served, encoded, early):
        runner.not_a_number = {4, 5}
        results = await make_engine().submit(served, encoded(2, 3, 4, 5), policy=early)
        assert [isinstance(result.outcome, RunFailed) for result in results] == [False, False, True, True]

    async def test_a_batch_that_cannot_begin_fails_whole_and_the_next_runs(
        self, make_engine, runner, served, encoded, early
    ):
        engine = make_engine()
        runner.begin_error = MemoryError()
        results = await engine.submit(served, encoded(2, 3), policy=early)
        assert all(isinstance(result.outcome, RunFailed) for result in results)
        runner.begin_error = None
        assert exits(await engine.submit(served, encoded(2), policy=early)) == [0]

    async def test_a_thread_that_is_killed_fails_its_batch(self, make_engine, runner, served, encoded, early):
        runner.poison = {3: SystemExit(1)}
        results = await make_engine().submit(served, encoded(2, 3), policy=early)
        assert all(isinstance(result.outcome, RunFailed) for result in results)

    async def test_when_the_engine_dies_every_waiter_is_told(
        self, make_engine, runner, observer, served, encoded, early
    ):
        engine = make_engine()
        runner.hold()
        running = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        waiting = asyncio.create_task(engine.submit(served, encoded(4), policy=early, deadline=time.monotonic() + 100))
        await asyncio.sleep(0)
        observer.raise_on = "batch"
        runner.let_go()
        for waiter in (running, waiting):
            with pytest.raises(NotReady, match="died"):
                await waiter
        assert not engine.healthy
        with pytest.raises(NotReady):
            await engine.submit(served, encoded(6), policy=early)


class TestCancellation:
    async def test_while_waiting_the_items_never_run(self, make_engine, runner, observer, served, encoded, early):
        engine = make_engine()
        runner.hold()
        first = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        gone = asyncio.create_task(engine.submit(served, encoded(4, 6), policy=early))
        stays = asyncio.create_task(engine.submit(served, encoded(8), policy=early))
        await asyncio.sleep(0)
        assert repr(engine) == "<Engine requests=3 queued=3 in_flight=1 busy_slots=1>"
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert repr(engine) == "<Engine requests=2 queued=1 in_flight=1 busy_slots=1>"
        runner.let_go()
        await asyncio.gather(first, stays)
        assert await settled(engine) == NOTHING_HELD
        assert runner.runs == [(0, (2,)), (0, (8,))]
        assert observer.named("dropped") == [("cancelled", 2)]

    async def test_while_running_the_batch_mates_are_answered(self, make_engine, runner, served, encoded, early):
        engine = make_engine()
        runner.hold()
        gone = asyncio.create_task(engine.submit(served, encoded(3), policy=early))
        stays = asyncio.create_task(engine.submit(served, encoded(5), policy=early))
        await runner.begun()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert repr(engine) == "<Engine requests=1 queued=0 in_flight=1 busy_slots=1>"
        runner.let_go()
        assert exits(await stays) == [1]
        assert await settled(engine) == NOTHING_HELD

    async def test_a_cancelled_crowd_leaves_room_in_the_queue(self, make_engine, runner, served, encoded, early):
        engine = make_engine(max_queue_items=4)
        runner.hold()
        first = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        crowd = [asyncio.create_task(engine.submit(served, encoded(4), policy=early)) for _ in range(4)]
        await asyncio.sleep(0)
        for waiter in crowd:
            waiter.cancel()
        await asyncio.wait(crowd)
        stays = asyncio.create_task(engine.submit(served, encoded(6, 8, 10, 12), policy=early))
        await asyncio.sleep(0)
        runner.let_go()
        await first
        assert exits(await stays) == [0] * 4


class TestEverythingAtOnce:
    @pytest.mark.parametrize("seed", range(5))
    async def test_every_item_ends_once_and_nothing_is_held(self, make_engine, make_runner, encoded, early, seed):
        draw = random.Random(seed)
        engine = make_engine(max_queue_items=60, token_budget=40, slots=2)
        runners = [make_runner(), make_runner()]
        students = [ServedStudent(f"student-{i}", 1, runner) for i, runner in enumerate(runners)]
        for runner in runners:
            runner.poison = {item: ValueError("poison") for item in draw.sample(range(100), 5)}
            runner.not_a_number = set(draw.sample(range(100), 5))

        async def client() -> None:
            items = [draw.randrange(100) for _ in range(draw.randrange(1, 12))]
            texts = [text for item in items for text in encoded(item, tokens=draw.randrange(1, 20))]
            student = draw.choice(students)
            deadline = draw.choice([None, time.monotonic() + draw.choice([0.001, 100])])
            for _ in range(draw.randrange(20)):
                await asyncio.sleep(0)
            results = await engine.submit(student, texts, policy=early, deadline=deadline)
            for item, result in zip(items, results, strict=True):
                broken = item in student.student.poison or item in student.student.not_a_number
                if isinstance(result.outcome, Outcome):
                    assert not broken
                    assert result.outcome.raw[0] == (100 if result.outcome.exit_index == 0 else item)
                else:
                    assert isinstance(result.outcome, DeadlineExceeded) or broken

        tasks = [asyncio.create_task(client()) for _ in range(80)]
        for task in draw.sample(tasks, 20):
            for _ in range(draw.randrange(5)):
                await asyncio.sleep(0)
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        allowed = (Overloaded, DeadlineExceeded, asyncio.CancelledError, type(None))
        assert {type(end) for end in ended} <= set(allowed)
        assert await settled(engine) == NOTHING_HELD


async def test_an_engine_nobody_watches(served, encoded, early):
    engine = Engine(EngineLimits(max_queue_items=10, token_budget=40, slots=1))
    served.student.poison = {3: RunFailed("broken")}
    results = await engine.submit(served, encoded(2, 3), policy=early)
    assert isinstance(results[1].outcome, RunFailed)
    with pytest.raises(DeadlineExceeded):
        await engine.submit(served, encoded(2), policy=early, deadline=time.monotonic() - 1)
    await engine.close()
