"""One timer for all: each thing that stays too long is told of once, in order."""

import asyncio

import pytest

from service.api.stragglers import Stragglers

PATIENCE_S = 30


class Told:
    """Stragglers on a clock that the test moves, and those that were told of."""

    def __init__(self, after_s: float = 0.01) -> None:
        self.now = 100.0
        self.things: list[str] = []
        self.any = asyncio.Event()
        self.here: Stragglers[str] = Stragglers(after_s, self._take, clock=lambda: self.now)

    def _take(self, thing: str) -> None:
        self.things.append(thing)
        self.any.set()

    async def until(self, *things: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.things != list(things):
                self.any.clear()
                await self.any.wait()


@pytest.fixture
async def told() -> Told:
    return Told()


async def test_who_stays_is_told_of_in_order(told: Told) -> None:
    told.here.add("a")
    told.here.add("b")
    told.now += 1
    told.here.add("c")
    assert list(told.here) == ["a", "b", "c"]
    await told.until("a", "b")
    assert list(told.here) == ["c"]
    told.now += 1
    await told.until("a", "b", "c")
    assert len(told.here) == 0


async def test_who_goes_is_not(told: Told) -> None:
    told.here.add("a")
    told.here.add("b")
    told.here.discard("a")
    told.here.discard("never there")
    told.now += 1
    await told.until("b")


async def test_the_timer_starts_anew_after_a_quiet_time(told: Told) -> None:
    told.here.add("a")
    told.here.discard("a")
    told.now += 1
    async with asyncio.timeout(PATIENCE_S):
        while told.here._timer is not None:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
    told.here.add("b")
    told.now += 1
    await told.until("b")


async def test_one_that_is_told_of_may_come_back(told: Told) -> None:
    again: Stragglers[str] = Stragglers(0.001, lambda thing: told.here.add(thing))
    again.add("a")
    async with asyncio.timeout(PATIENCE_S):
        while not len(told.here):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
    told.now += 1
    await told.until("a")
