"""The queues keep order and give up the places of items that ended."""

import asyncio

import pytest

from service.engine.item import Item, Request, State
from service.engine.policy import QueueKey
from service.engine.queues import Queues


@pytest.fixture
def key(served):
    return QueueKey(served, 0)


@pytest.fixture
async def make_items(served, early, encoded):
    """`make_items(key, *moments)`: waiting items of one request."""

    def make(key: QueueKey, *moments: float) -> list[Item]:
        request = Request(served, early, 100.0, 0.0, asyncio.get_running_loop().create_future())
        return [Item(request, i, encoded(1)[0], key, (moment, i)) for i, moment in enumerate(moments)]

    return make


def moments(queues: Queues, key: QueueKey) -> list[float]:
    return [item.urgency[0] for item in queues.waiting.get(key, ())]


def end(queues: Queues, item: Item) -> None:
    item.state = State.ENDED
    queues.left(item.key)


async def test_requests_are_merged_by_urgency(make_items, key):
    queues = Queues()
    queues.add(key, make_items(key, 1, 4, 6))
    queues.add(key, make_items(key, 2, 3, 9))
    assert moments(queues, key) == [1, 2, 3, 4, 6, 9]
    assert (queues.items, queues.count(key)) == (6, 6)


async def test_a_small_request_finds_its_place_in_a_long_queue(make_items, key):
    queues = Queues()
    queues.add(key, make_items(key, *range(100)))
    queues.add(key, make_items(key, 41.5))
    assert moments(queues, key)[41:43] == [41, 41.5]


async def test_clear_gives_up_the_places_of_those_who_left(make_items, key):
    queues = Queues()
    items = make_items(key, 1, 2, 3, 4)
    queues.add(key, items)
    end(queues, items[1])
    items[0].state = State.RUNNING
    queues.left(key)
    assert (queues.items, moments(queues, key)) == (2, [1, 2, 3, 4])
    queues.clear({key: 1})
    assert moments(queues, key) == [2, 3, 4]
    queues.clear({key: 3})
    assert moments(queues, key) == [3, 4]


async def test_an_empty_queue_is_forgotten(make_items, key):
    queues = Queues()
    items = make_items(key, 1)
    queues.add(key, items)
    end(queues, items[0])
    queues.clear({key: 1})
    assert (dict(queues.waiting), queues.count(key), queues.items) == ({}, 0, 0)


async def test_sweep_waits_until_half_the_places_are_empty(make_items, key):
    queues = Queues()
    items = make_items(key, 1, 2, 3, 4)
    queues.add(key, items)
    end(queues, items[0])
    queues.sweep()
    assert len(moments(queues, key)) == 4
    end(queues, items[3])
    queues.sweep()
    assert moments(queues, key) == [2, 3]
