"""The queues keep order, count, and give up the places of what no longer waits."""

import asyncio

import numpy as np
import pytest

from service.engine.flight import group_of
from service.engine.item import Item, Request
from service.engine.lane import StudentLane
from service.engine.queues import StageQueue
from service.runtime.encode import pad


@pytest.fixture
def lane():
    return StudentLane((), stages=2)


@pytest.fixture
def queue(lane) -> StageQueue:
    return lane.lines[0]


@pytest.fixture
async def make_items(served, early, encoded, lane):
    """`make_items(*moments)`: waiting items of one request, of 4 tokens each."""

    def make(*moments: float) -> list[Item]:
        request = Request(served, lane, early, 100.0, 0.0, asyncio.get_running_loop().create_future())
        return [
            Item(request, i, encoded(1)[0], 4, 4, moment, i, 100.0, 0.0, lane.lines[0])
            for i, moment in enumerate(moments)
        ]

    return make


def moments(queue: StageQueue) -> list[float]:
    return [entry.moment for entry in queue.entries]


def end(queue: StageQueue, item: Item) -> None:
    queue.ended(item)
    item.waits, item.ended = False, True


async def test_requests_are_merged_by_urgency(make_items, queue):
    queue.add(make_items(1, 4, 6))
    queue.add(make_items(2, 3, 9))
    queue.add(make_items(9, 10))
    assert moments(queue) == [1, 2, 3, 4, 6, 9, 9, 10]
    assert (queue.items, queue.tokens) == (8, 32)


async def test_a_small_request_finds_its_place_in_a_long_queue(make_items, queue):
    queue.add(make_items(*range(100)))
    queue.add(make_items(41.5))
    assert moments(queue)[41:43] == [41, 41.5]


async def test_clear_gives_up_the_places_of_those_who_left(make_items, queue):
    items = make_items(1, 2, 3, 4)
    queue.add(items)
    end(queue, items[1])
    items[0].waits = False
    queue.left(items[:1])
    assert (queue.items, queue.tokens, moments(queue)) == (2, 8, [1, 2, 3, 4])
    queue.clear(1)
    assert moments(queue) == [2, 3, 4]
    queue.clear(3)
    assert moments(queue) == [3, 4]


async def test_sweep_waits_until_half_the_places_are_empty(make_items, queue):
    items = make_items(1, 2, 3, 4)
    queue.add(items)
    end(queue, items[0])
    queue.sweep()
    assert len(moments(queue)) == 4
    end(queue, items[3])
    queue.sweep()
    assert moments(queue) == [2, 3]


async def test_how_many_are_of_a_length(make_items, queue):
    assert queue.near(4, 1.0) == 0
    queue.add(make_items(*range(100)))
    assert (queue.near(5, 1.0), queue.near(6, 1.0)) == (100, 0)


class TestGroups:
    async def test_where_all_have_ended_there_is_none(self, make_items, runner, encoded, early):
        items = make_items(5, 2)
        going = runner.begin(pad(encoded(3, 5), pad_id=0), early)
        going.step()
        for item in items:
            item.waits, item.ended = False, True
        assert group_of(items, going, 7.0) is None

    async def test_those_that_ended_are_left_out(self, make_items, runner, encoded, early, lane):
        items = make_items(5, 2, 3)
        for item in items:
            item.waits = False
        going = runner.begin(pad(encoded(3, 5, 7), pad_id=0), early)
        going.step()
        items[1].waits, items[1].ended = False, True
        group = group_of(items, going, 7.0)
        assert (group.items, group.real_tokens, group.tokens) == (2, 8, 4)
        assert (group.moment, group.order, group.since) == (3, 2, 7.0)
        assert going.rows.tolist() == [0, 1]
        assert group.members == [items[0], items[2]]
        assert np.array_equal(group.going.rows, [0, 1])

    async def test_one_that_ends_is_counted_out_of_its_group(self, make_items, runner, encoded, early, lane):
        items = make_items(5, 2)
        going = runner.begin(pad(encoded(3, 5), pad_id=0), early)
        going.step()
        group, line = group_of(items, going, 7.0), lane.lines[1]
        line.add((group,))
        end(line, items[0])
        assert (line.items, line.tokens, group.items, group.waits, group.ended) == (1, 4, 1, True, False)
        end(line, items[1])
        assert (group.waits, group.ended) == (False, True)
        line.clear(1)
        assert line.entries == []
