"""The policy, with plain numbers and as properties."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.policy import EngineLimits, QueueKey, fill, plan, urgencies

LIMITS = EngineLimits(max_queue_items=100, token_budget=40, slots=1, padding_tokens=8)
LOWER, UPPER = QueueKey("a", 0), QueueKey("a", 1)
NEVER = math.inf


@dataclass(eq=False)
class Waiter:
    """A waiting item as the policy sees it."""

    tokens: int = 10
    moment: float = 0.0
    order: int = 0
    deadline: float = NEVER
    ended: bool = False
    key: QueueKey = LOWER
    urgency: tuple[float, int] = field(init=False)

    def __post_init__(self):
        self.urgency = (self.moment, self.order)


def line(*tokens: int, **more) -> list[Waiter]:
    """Waiters of those lengths, the first most urgent."""
    return [Waiter(n, moment=i, order=i, **more) for i, n in enumerate(tokens)]


def lengths(batch) -> list[int]:
    return [item.tokens for item in batch]


class TestFill:
    @pytest.mark.parametrize(
        ("front", "filled"),
        [
            ([10], [10]),
            ([10, 10, 10, 10, 10], [10, 10, 10, 10]),
            ([10, 20, 9, 11, 10], [10, 10, 9]),
            ([100, 10], [100]),
            ([10, 100], [10]),
            ([41], [41]),
            ([4, 12, 4], [4, 4]),
            ([4, 8, 4], [4, 4, 8]),
            ([20, 19, 1], [20, 19]),
        ],
    )
    def test_by_nearest_length_within_budget_and_padding(self, front, filled):
        assert lengths(fill(line(*front), limits=LIMITS)) == filled

    def test_of_equals_the_more_urgent_joins(self):
        front = line(10, 12, 8, 12, 8)
        limits = EngineLimits(max_queue_items=9, token_budget=36, slots=1)
        assert fill(front, limits=limits) == (front[0], front[1], front[2])


class TestPlan:
    def test_nothing_waits(self):
        assert plan({}, now=0, limits=LIMITS, idle_slots=1).batches == ()

    def test_no_idle_slot_looks_at_nothing(self):
        decided = plan({LOWER: line(10)}, now=0, limits=LIMITS, idle_slots=0)
        assert (decided.batches, dict(decided.looked)) == ((), {})

    def test_the_earliest_moment_leads(self):
        waiting = {LOWER: [Waiter(moment=5)], UPPER: [Waiter(moment=3)], QueueKey("b", 0): [Waiter(moment=4)]}
        assert plan(waiting, now=0, limits=LIMITS, idle_slots=1).batches[0].key == UPPER

    def test_a_deeper_stage_wins_a_tie(self):
        waiting = {LOWER: [Waiter(moment=3, order=0)], UPPER: [Waiter(moment=3, order=9)]}
        assert plan(waiting, now=0, limits=LIMITS, idle_slots=1).batches[0].key == UPPER

    def test_then_the_first_to_come(self):
        other = QueueKey("b", 0)
        waiting = {LOWER: [Waiter(moment=3, order=2)], other: [Waiter(moment=3, order=1)]}
        assert plan(waiting, now=0, limits=LIMITS, idle_slots=1).batches[0].key == other

    def test_each_idle_slot_gets_a_batch(self):
        waiting = {LOWER: line(10, 10, 10, 10, 10), UPPER: [Waiter(moment=0.5)]}
        decided = plan(waiting, now=0, limits=LIMITS, idle_slots=5)
        assert [(batch.key.stage, len(batch.items)) for batch in decided.batches] == [(0, 4), (1, 1), (0, 1)]

    def test_the_expired_and_the_ended_are_passed_over(self):
        items = [Waiter(ended=True), Waiter(deadline=7.0), Waiter(deadline=7.1)]
        decided = plan({LOWER: items}, now=7.0, limits=LIMITS, idle_slots=1)
        assert decided.expired == (items[1],)
        assert decided.batches[0].items == (items[2],)
        assert decided.looked == {LOWER: 3}

    def test_a_batch_looks_no_further_than_the_window(self):
        limits = EngineLimits(max_queue_items=100, token_budget=40, slots=1, window_items=3)
        items = line(10, 14, 14, 10, 10)
        decided = plan({LOWER: items}, now=0, limits=limits, idle_slots=1)
        assert lengths(decided.batches[0].items) == [10, 14]
        assert decided.looked == {LOWER: 3}

    def test_it_changes_nothing(self):
        items = line(10, 10, 10, 10, 10, 10)
        before = list(items)
        plan({LOWER: items}, now=0, limits=LIMITS, idle_slots=3)
        assert items == before


class TestUrgencies:
    def test_a_deadline_is_the_moment_and_items_follow_at_the_pace(self):
        assert urgencies(3, order=7, now=1.0, deadline=2.0, limits=LIMITS) == [(2.0, 7), (2.01, 8), (2.02, 9)]

    def test_without_a_deadline_patience_is_the_moment(self):
        assert urgencies(1, order=0, now=1.0, deadline=NEVER, limits=LIMITS) == [(2.0, 0)]


waiters = st.builds(
    Waiter,
    tokens=st.integers(1, 60),
    moment=st.floats(0, 100),
    order=st.integers(0, 10**6),
    deadline=st.one_of(st.just(NEVER), st.floats(0, 100)),
    ended=st.booleans(),
    key=st.builds(QueueKey, st.sampled_from("abc"), st.integers(0, 2)),
)
limits = st.builds(
    EngineLimits,
    max_queue_items=st.just(100),
    token_budget=st.integers(1, 200),
    slots=st.just(4),
    window_items=st.integers(1, 20),
    padding_share=st.floats(0, 1),
    padding_tokens=st.integers(0, 100),
)


def queues(items):
    keys = {item.key for item in items}
    return {key: sorted((i for i in items if i.key == key), key=lambda i: i.urgency) for key in keys}


class TestProperties:
    @given(st.lists(waiters, max_size=40), limits, st.integers(0, 4), st.floats(0, 100))
    def test_of_one_plan(self, items, limits, idle_slots, now):
        waiting = queues(items)
        decided = plan(waiting, now=now, limits=limits, idle_slots=idle_slots)
        placed = [item for batch in decided.batches for item in batch.items]
        assert len({id(item) for item in placed}) == len(placed)
        assert all(not item.ended and item.deadline > now for item in placed)
        assert all(item.deadline <= now and not item.ended for item in decided.expired)
        for batch in decided.batches:
            padded = len(batch.items) * max(item.tokens for item in batch.items)
            assert len(batch.items) == 1 or padded <= limits.token_budget
            assert all(item.key == batch.key for item in batch.items)
        for item in (*placed, *decided.expired):
            assert any(item is seen for seen in waiting[item.key][: decided.looked[item.key]])

    @given(st.lists(waiters, max_size=40), limits, st.integers(1, 4), st.floats(0, 100))
    def test_no_slot_idles_while_something_waits_and_the_most_urgent_leads(self, items, limits, idle_slots, now):
        live = [item for item in items if not item.ended and item.deadline > now]
        decided = plan(queues(items), now=now, limits=limits, idle_slots=idle_slots)
        assert bool(decided.batches) == bool(live)
        placed = sum(len(batch.items) for batch in decided.batches)
        assert len(decided.batches) == idle_slots or placed == len(live)
        if live:
            assert decided.batches[0].items[0].urgency[0] == min(item.urgency[0] for item in live)

    @given(st.lists(st.integers(1, 60), min_size=1, max_size=40), limits)
    def test_leaders_of_one_queue_lead_in_order(self, tokens, limits):
        waiting = line(*tokens)
        leaders = []
        while waiting:
            (batch,) = plan({LOWER: waiting}, now=0, limits=limits, idle_slots=1).batches
            leaders.append(batch.items[0])
            assert batch.items[0] is waiting[0]
            waiting = [item for item in waiting if item not in batch.items]
        assert leaders == sorted(leaders, key=lambda item: item.urgency)

    @given(st.integers(1, 60), st.integers(1, 30), limits)
    def test_nobody_starves(self, odd_tokens, rate, limits):
        """An odd item among endless newcomers runs before any newcomer that came a patience later leads."""
        odd = Waiter(odd_tokens, moment=limits.patience_s, order=0)
        waiting, order = [odd], 1
        for tick in range(200):
            now = tick * 0.1
            for _ in range(rate):
                waiting.append(Waiter(10, moment=now + limits.patience_s, order=order))
                order += 1
            (batch,) = plan({LOWER: waiting}, now=now, limits=limits, idle_slots=1).batches
            if odd in batch.items:
                return
            waiting = [item for item in waiting if item not in batch.items]
        pytest.fail("the odd item never ran")
