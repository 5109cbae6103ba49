"""The policy, with plain numbers and as properties."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.forecast import Outlook
from service.engine.limits import EngineLimits, first_moment
from service.engine.policy import company_may_pay, least_onward, plan
from service.runtime.cost import StageCost

LIMITS = EngineLimits(max_queue_items=100, token_budget=40, slots=1, batch_s=1e9)
STEEP = StageCost(base_s=1.0, token_s=0.01)
FLAT = StageCost(base_s=0.0, token_s=0.01)
NEVER = math.inf


def outlook(cost: StageCost) -> Outlook:
    return Outlook(cost, cost, cost)


@dataclass(eq=False)
class Line:
    stage: int
    entries: list
    outlook: Outlook = field(default_factory=lambda: outlook(FLAT))

    @property
    def tokens(self) -> int:
        return sum(entry.real_tokens for entry in self.entries)


@dataclass(eq=False)
class Lane:
    lines: list
    virtual: float = 0.0


def lane(*stages, virtual: float = 0.0, cost: StageCost = FLAT) -> Lane:
    """A student with those entries waiting for its stages."""
    return Lane([Line(i, list(entries), outlook(cost)) for i, entries in enumerate(stages)], virtual)


class TestPlan:
    def test_nothing_waits(self):
        decided = plan([], now=0, limits=LIMITS)
        assert (decided.batch, decided.wake, list(decided.expired)) == (None, NEVER, [])
        assert plan([lane([], [])], now=0, limits=LIMITS).batch is None

    def test_the_student_that_had_least_goes_first(self, make_waiter):
        rich, poor = lane([make_waiter(moment=0)], virtual=2.0), lane([make_waiter(moment=9)], virtual=1.0)
        assert plan([rich, poor], now=0, limits=LIMITS).batch.lane is poor

    def test_one_whose_work_has_all_ended_is_passed_over(self, make_waiter):
        idle, busy = lane([make_waiter(ended=True)]), lane([make_waiter()], virtual=1.0)
        decided = plan([idle, busy], now=0, limits=LIMITS)
        assert decided.batch.lane is busy
        assert [(look.line, look.entries) for look in decided.looks] == [(idle.lines[0], 1), (busy.lines[0], 1)]

    def test_the_earliest_moment_leads(self, make_waiter):
        one = lane([make_waiter(moment=5)], [make_waiter(moment=3)], [make_waiter(moment=4)])
        assert plan([one], now=0, limits=LIMITS).batch.line.stage == 1

    def test_a_deeper_stage_wins_a_tie_then_the_first_to_come(self, make_waiter):
        one = lane([make_waiter(moment=3, order=0)], [make_waiter(moment=3, order=9)])
        assert plan([one], now=0, limits=LIMITS).batch.line.stage == 1

    def test_the_expired_and_the_ended_are_passed_over(self, make_waiter):
        items = [make_waiter(ended=True), make_waiter(deadline=7.0), make_waiter(deadline=7.1)]
        one = lane(items)
        decided = plan([one], now=7.0, limits=LIMITS)
        assert list(decided.expired) == [items[1]]
        assert list(decided.batch.entries) == [items[2]]
        assert [look.entries for look in decided.looks] == [3]

    def test_a_batch_looks_no_further_than_the_window(self, line):
        limits = EngineLimits(max_queue_items=100, token_budget=40, slots=1, batch_s=1e9, window_items=3)
        items = line(10, 14, 14, 10, 10)
        decided = plan([lane(items, cost=StageCost(1000.0, 1.0))], now=0, limits=limits)
        assert [item.tokens for item in decided.batch.entries] == [10, 14]
        assert decided.looks[0].entries == 3

    def test_it_changes_nothing(self, line):
        items = line(10, 10, 10, 10, 10, 10)
        before = list(items)
        plan([lane(items)], now=0, limits=LIMITS)
        assert items == before


class TestRipeness:
    """At 1 s + 0.01 s a token, survivors of few tokens wait for company while others feed them."""

    def waiting(self, make_waiter, *, since: float = 0.0, tokens: int = 10):
        newcomer = make_waiter(moment=9.0, tokens=10)
        return lane([newcomer], [make_waiter(moment=5.0, since=since, tokens=tokens)], cost=STEEP)

    def test_the_unripe_give_way_to_those_who_feed_them(self, make_waiter):
        assert plan([self.waiting(make_waiter)], now=0, limits=LIMITS).batch.line.stage == 0

    def test_the_ripe_go_by_urgency(self, make_waiter):
        assert plan([self.waiting(make_waiter, tokens=900)], now=0, limits=LIMITS).batch.line.stage == 1

    def test_who_has_waited_long_enough_goes(self, make_waiter):
        waiting = self.waiting(make_waiter, since=-LIMITS.ripen_s)
        assert plan([waiting], now=0, limits=LIMITS).batch.line.stage == 1

    def test_who_has_no_time_to_lose_goes(self, make_waiter):
        assert plan([self.waiting(make_waiter)], now=4.0, limits=LIMITS).batch.line.stage == 1

    def test_alone_they_go_at_once(self, make_waiter):
        alone = lane([], [make_waiter(moment=5.0)], cost=STEEP)
        assert plan([alone], now=0, limits=LIMITS).batch.line.stage == 1

    def test_without_rebatching_groups_run_by_themselves(self, make_waiter):
        groups = [make_waiter(order=0), make_waiter(order=1)]
        joined = plan([lane([], groups, cost=STEEP)], now=0, limits=LIMITS)
        assert list(joined.batch.entries) == groups
        apart = EngineLimits(max_queue_items=100, token_budget=40, slots=1, batch_s=1e9, rebatch=False)
        assert list(plan([lane([], groups, cost=STEEP)], now=0, limits=apart).batch.entries) == groups[:1]


class TestWindow:
    LIMITS = EngineLimits(max_queue_items=100, token_budget=40, slots=1, batch_s=1e9, window_s=0.5)

    def test_the_unripe_wait_until_it_ends(self, make_waiter):
        waiting = [lane([make_waiter(moment=9.0, since=1.0)], cost=STEEP)]
        decided = plan(waiting, now=1.2, limits=self.LIMITS)
        assert (decided.batch, decided.wake) == (None, 1.5)
        assert plan(waiting, now=1.5, limits=self.LIMITS).batch is not None

    def test_the_ripe_do_not_wait(self, make_waiter):
        assert plan([lane([make_waiter(moment=9.0, since=1.0)])], now=1.2, limits=self.LIMITS).batch is not None

    def test_nor_those_with_no_time_to_lose(self, make_waiter):
        waiting = [lane([make_waiter(moment=2.0, since=1.0)], cost=STEEP)]
        assert plan(waiting, now=1.2, limits=self.LIMITS).batch is not None

    def test_another_student_is_not_held_up(self, make_waiter):
        held, free = lane([make_waiter(moment=9.0, since=1.0)], cost=STEEP), lane([make_waiter()], virtual=5.0)
        assert plan([held, free], now=1.2, limits=self.LIMITS).batch.lane is free


class TestUrgency:
    def moment(self, deadline=NEVER, priority="normal"):
        return first_moment(now=1.0, deadline=deadline, priority=priority, limits=LIMITS)

    def test_the_deadline_or_the_patience(self):
        assert (self.moment(5.0), self.moment()) == (5.0, 2.0)

    def test_a_priority_shifts_it(self):
        assert (self.moment(5.0, "high"), self.moment(priority="low")) == (4.0, 3.0)


class TestOnward:
    def test_company_pays_where_a_run_costs_much_whatever_its_size(self):
        few = least_onward(STEEP, longest=10, others=20, most=64)
        assert 1 < few <= 64

    def test_never_where_the_cost_is_all_in_tokens(self):
        assert least_onward(FLAT, longest=10, others=1000, most=64) == 1

    def test_never_alone(self):
        assert least_onward(STEEP, longest=10, others=0.5, most=64) == 1

    def test_all_may_be_better_off_waiting(self):
        assert least_onward(StageCost(1.0, 1e-9), longest=10, others=1000, most=8) == 9

    @given(st.floats(0, 1), st.floats(1e-6, 1), st.integers(1, 50), st.floats(1, 100))
    def test_company_that_never_pays_is_never_waited_for(self, base_s, token_s, items, others):
        run = StageCost(base_s, token_s)
        if not company_may_pay(run, longest=10, items=items):
            assert least_onward(run, longest=10, others=others, most=64) <= items


entries = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 60),
        "items": st.just(1),
        "moment": st.floats(0, 100),
        "order": st.integers(0, 10**6),
        "since": st.floats(0, 100),
        "deadline": st.one_of(st.just(NEVER), st.floats(0, 100)),
        "ended": st.booleans(),
    }
)
placed = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), entries), max_size=40)
limits = st.builds(
    EngineLimits,
    max_queue_items=st.just(100),
    token_budget=st.integers(1, 200),
    slots=st.just(1),
    window_items=st.integers(1, 20),
    rebatch=st.booleans(),
)
cost = st.builds(StageCost, base_s=st.floats(1e-6, 1), token_s=st.floats(1e-6, 1))


def lanes_of(waiter_class, placed, cost) -> tuple[list[Lane], list]:
    made = [(student, stage, waiter_class(**fields)) for student, stage, fields in placed]
    lanes = []
    for student in range(3):
        stages = [
            sorted((w for s, t, w in made if (s, t) == (student, stage)), key=lambda w: (w.moment, w.order))
            for stage in range(3)
        ]
        lanes.append(lane(*stages, virtual=float(student), cost=cost))
    return lanes, [waiter for *_, waiter in made]


class TestProperties:
    @given(placed, limits, cost, st.floats(0, 100), st.booleans())
    def test_of_one_plan(self, waiter_class, placed, limits, cost, now, crowded):
        lanes, made = lanes_of(waiter_class, placed, cost)
        decided = plan(lanes, now=now, limits=limits, crowded=crowded)
        live = [waiter for waiter in made if not waiter.ended and waiter.deadline > now]
        assert (decided.batch is None) == (not live)
        assert all(waiter.deadline <= now and not waiter.ended for waiter in decided.expired)
        seen = {id(waiter) for look in decided.looks for waiter in look.line.entries[: look.entries]}
        chosen = [] if decided.batch is None else list(decided.batch.entries)
        assert {id(waiter) for waiter in (*chosen, *decided.expired)} <= seen
        if chosen:
            assert all(waiter in live and waiter in decided.batch.line.entries for waiter in chosen)
            assert len({id(waiter) for waiter in chosen}) == len(chosen)
            padded = len(chosen) * max(waiter.tokens for waiter in chosen)
            assert len(chosen) == 1 or padded <= limits.token_budget
            mine = [waiter for waiter in decided.batch.line.entries if waiter in live]
            assert chosen[0] is mine[0]
            active = [one for one in lanes if any(waiter in live for line in one.lines for waiter in line.entries)]
            assert decided.batch.lane is active[0]

    @pytest.mark.parametrize("token_budget", [10, 60, 200])
    @given(st.integers(1, 60), st.integers(1, 30), cost)
    def test_nobody_starves(self, waiter_class, token_budget, odd_tokens, rate, cost):
        """An odd item among endless newcomers runs before any newcomer that came a patience later leads."""
        limits = EngineLimits(max_queue_items=100, token_budget=token_budget, slots=1)
        odd = waiter_class(tokens=odd_tokens, moment=limits.patience_s, order=0)
        waiting, order = [odd], 1
        for tick in range(300):
            now = tick * 0.1
            for _ in range(rate):
                waiting.append(waiter_class(tokens=10, moment=now + limits.patience_s, order=order))
                order += 1
            batch = plan([lane(waiting, cost=cost)], now=now, limits=limits).batch
            if odd in batch.entries:
                return
            assert batch.entries[0].moment < odd.moment
            waiting = [waiter for waiter in waiting if waiter not in batch.entries]
        pytest.fail("the odd item never ran")
