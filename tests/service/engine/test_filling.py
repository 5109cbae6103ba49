"""Which entries join a batch, with plain numbers and as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.filling import EFFICIENCY_LOSS, fill, most_items
from service.engine.forecast import Outlook
from service.engine.limits import EngineLimits
from service.runtime.cost import StageCost

LIMITS = EngineLimits(max_queue_items=100, token_budget=40, slots=1, batch_s=1e9)
STEEP = StageCost(base_s=1000.0, token_s=1.0)


def outlook(cost: StageCost) -> Outlook:
    return Outlook(cost, cost, cost)


def lengths(entries) -> list[int]:
    return [entry.tokens for entry in entries]


@pytest.mark.parametrize(
    ("front", "filled"),
    [
        ([10], [10]),
        ([10, 10, 10, 10, 10], [10, 10, 10, 10]),
        ([10, 20, 9, 11, 10], [10, 10, 11]),
        ([100, 10], [100]),
        ([10, 100], [10]),
        ([41], [41]),
        ([20, 19, 1], [20, 19]),
        ([4, 12, 4], [4, 4, 12]),
    ],
)
def test_where_a_run_costs_much_whatever_its_size_the_budget_is_filled(line, front, filled):
    assert lengths(fill(line(*front), outlook(STEEP), limits=LIMITS)) == filled


@pytest.mark.parametrize(
    ("front", "filled"), [([10, 10, 9], [10, 10]), ([10, 11], [10]), ([10], [10]), ([100, 100], [100])]
)
def test_where_the_cost_is_all_in_tokens_nothing_is_padded(line, front, filled):
    linear = outlook(StageCost(base_s=0.5, token_s=1.0))
    assert lengths(fill(line(*front), linear, limits=LIMITS)) == filled


def test_a_run_of_one_length_is_judged_as_a_whole(line):
    """One of 12 among eight of 10 would cost more than it brings; eight of 12 do not."""
    cost = outlook(StageCost(base_s=150.0, token_s=5.0))
    limits = EngineLimits(max_queue_items=100, token_budget=4096, slots=1, batch_s=1e9)
    assert lengths(fill(line(*[10] * 8, 12), cost, limits=limits)) == [10] * 8
    assert lengths(fill(line(*[10] * 8, *[12] * 8), cost, limits=limits)) == [10] * 8 + [12] * 8


def test_of_equals_the_more_urgent_joins(line):
    front = line(10, 12, 8, 12, 8, 10, 10)
    limits = EngineLimits(max_queue_items=9, token_budget=20, slots=1, batch_s=1e9)
    assert fill(front, outlook(STEEP), limits=limits) == [front[0], front[5]]


def test_groups_join_whole_or_not_at_all(make_waiter):
    leader, large, small = make_waiter(items=2), make_waiter(items=3, order=1), make_waiter(items=1, order=2)
    assert fill([leader, large, small], outlook(STEEP), limits=LIMITS) == [leader]
    assert fill([leader, small], outlook(STEEP), limits=LIMITS) == [leader, small]


class TestMostItems:
    def test_the_token_budget(self):
        assert [most_items(outlook(STEEP), tokens, limits=LIMITS) for tokens in (1, 10, 40, 41)] == [40, 4, 1, 1]

    def test_the_seconds_of_the_costliest_stage_ahead(self):
        cheap, dear = StageCost(0.0, 0.001), StageCost(0.1, 0.1)
        limits = EngineLimits(max_queue_items=100, token_budget=10_000, slots=1, batch_s=2.1)
        assert most_items(Outlook(cheap, cheap, dear), 10, limits=limits) == 2

    def test_no_longer_than_makes_a_run_cheaper(self):
        cost = outlook(StageCost(base_s=0.001, token_s=0.001))
        limits = EngineLimits(max_queue_items=100, token_budget=10_000, slots=1, batch_s=100.0)
        alone, crowded = (most_items(cost, 1, limits=limits, crowded=crowd) for crowd in (False, True))
        assert 1 < crowded < alone < 100

    def test_a_cost_that_does_not_grow(self):
        assert most_items(outlook(StageCost(1.0, 0.0)), 10, limits=LIMITS) == 4


costs = st.builds(
    StageCost, base_s=st.floats(1e-6, 1e-2), token_s=st.floats(0, 1e-4), square_s=st.sampled_from([0.0, 1e-8])
)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=40), costs, st.booleans())
def test_no_batch_is_over_budget_and_the_leader_is_in_it(waiter_class, shapes, cost, crowded):
    front = [waiter_class(tokens=tokens, items=items, order=i) for i, (tokens, items) in enumerate(shapes)]
    limits = EngineLimits(max_queue_items=100, token_budget=200, slots=1, batch_s=0.01)
    chosen = fill(front, outlook(cost), limits=limits, crowded=crowded)
    assert chosen[0] is front[0]
    assert len({id(entry) for entry in chosen}) == len(chosen)
    items, longest = sum(entry.items for entry in chosen), max(entry.tokens for entry in chosen)
    assert len(chosen) == 1 or (items * longest <= 200 and cost.seconds(items, longest) <= 0.01 * 1.0001)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), costs)
def test_company_never_costs_efficiency(waiter_class, tokens, cost):
    front = [waiter_class(tokens=n, order=i) for i, n in enumerate(tokens)]
    limits = EngineLimits(max_queue_items=100, token_budget=4096, slots=1)
    chosen = fill(front, outlook(cost), limits=limits)
    alone = front[0].tokens / cost.seconds(1, front[0].tokens)
    together = sum(lengths(chosen)) / cost.seconds(len(chosen), max(lengths(chosen)))
    assert together >= alone * (1 - EFFICIENCY_LOSS) * 0.9999
