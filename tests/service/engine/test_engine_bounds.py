"""The engine's bounds: deadlines, a full queue, and stopping."""

import asyncio
import time

import pytest

from service.errors import (
    DeadlineExceeded,
    Draining,
    Overloaded,
    TooLarge,
)

SOON_S = 0.2  # long enough to be admitted on a busy machine, short enough to wait for
NOTHING_HELD = "<Engine requests=0 queued=0 in_flight=0 busy_slots=0 draining>"


async def settled(engine) -> str:
    """What the engine holds once the slots have reported back; it takes no more work then."""
    assert await engine.drain(20)
    return repr(engine)


def exits(results) -> list[int]:
    return [result.outcome.exit_index for result in results]


class TestDeadlines:
    async def test_passed_at_admission(self, make_engine, runner, observer, served, encoded, early):
        with pytest.raises(DeadlineExceeded):
            await make_engine().submit(served, encoded(2), policy=early, deadline=time.monotonic() - 1)
        assert runner.runs == []
        assert observer.named("dropped") == [("deadline", 1)]

    async def test_passes_while_waiting(self, make_engine, runner, observer, served, encoded, early):
        engine = make_engine()
        runner.hold()
        first = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        # the slot is held until after the answer: only the engine's own timer can bring it
        late = await engine.submit(served, encoded(4, 6), policy=early, deadline=time.monotonic() + SOON_S)
        assert all(isinstance(result.outcome, DeadlineExceeded) for result in late)
        assert observer.named("dropped") == [("deadline", 2)]
        runner.let_go()
        await first
        assert await settled(engine) == NOTHING_HELD
        assert runner.runs == [(0, (2,))]

    async def test_found_at_forming_before_its_timer_went_off(self, make_engine, runner, served, encoded, early):
        ahead = [0.0]
        engine = make_engine(clock=lambda: time.monotonic() + ahead[0])
        runner.hold()
        first = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        late = asyncio.create_task(engine.submit(served, encoded(4), policy=early, deadline=time.monotonic() + 500))
        stays = asyncio.create_task(engine.submit(served, encoded(6), policy=early))
        await asyncio.sleep(0)
        ahead[0] = 1000.0
        runner.let_go()
        assert isinstance((await late)[0].outcome, DeadlineExceeded)
        await asyncio.gather(first, stays)
        assert await settled(engine) == NOTHING_HELD
        assert runner.runs == [(0, (2,)), (0, (6,))]

    async def test_passes_between_stages(self, make_engine, runner, served, encoded, early):
        engine = make_engine()
        runner.hold()
        patient = asyncio.create_task(engine.submit(served, encoded(5), policy=early))
        soon = time.monotonic() + SOON_S
        late = asyncio.create_task(engine.submit(served, encoded(3), policy=early, deadline=soon))
        (result,) = await late
        assert isinstance(result.outcome, DeadlineExceeded)
        runner.let_go()
        assert exits(await patient) == [1]
        assert await settled(engine) == NOTHING_HELD
        assert runner.runs == [(0, (3, 5)), (1, (5,))]

    async def test_a_met_deadline_changes_nothing(self, make_engine, served, encoded, early):
        results = await make_engine().submit(served, encoded(3), policy=early, deadline=time.monotonic() + 100)
        assert exits(results) == [1]

    async def test_the_earliest_deadline_goes_first(self, make_engine, runner, served, encoded, early):
        engine = make_engine(token_budget=4)
        runner.hold()
        now = time.monotonic()
        tasks = [asyncio.create_task(engine.submit(served, encoded(2), policy=early))]
        await runner.begun()
        for item, deadline in ((4, now + 90), (6, now + 60), (8, now + 30)):
            tasks.append(asyncio.create_task(engine.submit(served, encoded(item), policy=early, deadline=deadline)))
        await asyncio.sleep(0)
        runner.let_go()
        await asyncio.gather(*tasks)
        assert [items for _, items in runner.runs] == [(2,), (8,), (6,), (4,)]


class TestAdmission:
    async def test_a_full_queue_sheds(self, make_engine, runner, observer, served, encoded, early):
        engine = make_engine(max_queue_items=2)
        runner.hold()
        first = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        waiting = asyncio.create_task(engine.submit(served, encoded(4, 6), policy=early))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as shed:
            await engine.submit(served, encoded(8), policy=early)
        assert shed.value.retry_after_s > 0
        assert observer.named("dropped") == [("overloaded", 1)]
        runner.let_go()
        await asyncio.gather(first, waiting)
        assert exits(await engine.submit(served, encoded(8), policy=early)) == [0]

    async def test_the_time_to_wait_is_measured(self, make_engine, runner, served, encoded, early):
        engine = make_engine(max_queue_items=1)
        await engine.submit(served, encoded(2), policy=early)
        runner.hold()
        tasks = [asyncio.create_task(engine.submit(served, encoded(2), policy=early))]
        await runner.begun()
        await runner.begun()
        tasks.append(asyncio.create_task(engine.submit(served, encoded(4), policy=early)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as shed:
            await engine.submit(served, encoded(8), policy=early)
        assert shed.value.retry_after_s != 1.0
        runner.let_go()
        await asyncio.gather(*tasks)

    async def test_what_can_never_wait_is_too_large(self, make_engine, served, encoded, early):
        with pytest.raises(TooLarge):
            await make_engine(max_queue_items=2).submit(served, encoded(2, 4, 6), policy=early)


class TestStopping:
    async def test_drain_answers_what_was_admitted_and_refuses_the_rest(
        self, make_engine, runner, observer, served, encoded, early
    ):
        engine = make_engine()
        runner.hold()
        admitted = asyncio.create_task(engine.submit(served, encoded(2, 3), policy=early))
        await runner.begun()
        draining = asyncio.create_task(engine.drain(20))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await engine.submit(served, encoded(4), policy=early)
        assert observer.named("dropped") == [("draining", 1)]
        assert not draining.done()
        runner.let_go()
        assert await draining
        assert exits(await admitted) == [0, 1]
        assert engine.healthy

    async def test_drain_gives_up_in_time_and_close_tells_the_rest(self, make_engine, runner, served, encoded, early):
        engine = make_engine()
        runner.hold()
        running = asyncio.create_task(engine.submit(served, encoded(2), policy=early))
        await runner.begun()
        waiting = asyncio.create_task(engine.submit(served, encoded(4), policy=early, deadline=time.monotonic() + 100))
        await asyncio.sleep(0)
        assert not await engine.drain(0)
        await engine.close()
        for waiter in (running, waiting):
            with pytest.raises(Draining):
                await waiter
        assert repr(engine) == "<Engine requests=0 queued=0 in_flight=0 busy_slots=1 stopped>"
        assert not engine.healthy
        runner.let_go()
        with pytest.raises(Draining):
            await engine.submit(served, encoded(4), policy=early)

    async def test_draining_an_idle_engine_is_immediate(self, make_engine):
        assert await make_engine().drain(0.5)

    async def test_close_twice(self, make_engine):
        engine = make_engine()
        await engine.close()
        await engine.close()
