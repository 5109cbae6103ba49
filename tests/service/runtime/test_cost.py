"""Costs are recovered from measured runs, and measuring keeps within its time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RunFailed
from service.runtime.cost import StageCost, fit, measure

SHAPES = tuple(itertools.product((1, 4, 16), (8, 16, 32, 64)))
seconds = st.floats(1e-7, 1e-2)


def samples(cost: StageCost, shapes=SHAPES) -> list[tuple[int, int, float]]:
    return [(items, tokens, cost.seconds(items, tokens)) for items, tokens in shapes]


class TestFit:
    @given(base=seconds, token=seconds, square=st.one_of(st.just(0.0), st.floats(1e-8, 1e-4)))
    def test_what_is_exact_is_recovered(self, base, token, square):
        exact = StageCost(base, token, square)
        found = fit(samples(exact))
        for items, tokens in (*SHAPES, (8, 12), (32, 64)):
            assert found.seconds(items, tokens) == pytest.approx(exact.seconds(items, tokens), rel=1e-3)

    @given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 256), st.floats(1e-6, 10)), min_size=1, max_size=20))
    def test_costs_are_never_negative(self, measured):
        found = fit(measured)
        assert min(found.base_s, found.token_s, found.square_s) >= 0
        assert found.seconds(1, 1) > 0

    @given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 256), st.floats(1e-6, 10)), min_size=1, max_size=20))
    def test_a_bigger_batch_never_costs_less(self, measured):
        found = fit(measured)
        assert found.seconds(1, 8) <= found.seconds(2, 8) <= found.seconds(2, 16)

    @given(st.lists(st.floats(0.9, 1.1), min_size=len(SHAPES), max_size=len(SHAPES)))
    def test_noise_moves_it_by_as_much(self, noise):
        exact = StageCost(5e-5, 2e-6, 1e-9)
        noisy = [(n, t, s * each) for (n, t, s), each in zip(samples(exact), noise, strict=True)]
        found = fit(noisy)
        for items, tokens in SHAPES:
            assert found.seconds(items, tokens) == pytest.approx(exact.seconds(items, tokens), rel=0.25)

    def test_one_run_is_enough(self):
        assert fit([(1, 8, 2e-3)]).seconds(1, 8) == pytest.approx(2e-3)


class Ticking:
    """A student whose stages cost what the test says, and more after another shape, on a clock of the test's own."""

    def __init__(self, student, costs: tuple[StageCost, ...], another_s: float = 0.0) -> None:
        self.bundle, self.manifest = student.bundle, student.manifest
        self.now = 0.0
        self.runs: list[tuple[int, int, int]] = []
        self._costs = costs
        self._another_s = another_s

    def run_stage(self, stage_index, feeds):
        items, tokens = feeds["attention_mask"].shape
        if self._another_s and self.runs[-1:] != [(stage_index, items, tokens)]:
            self.now += self._another_s
        self.runs.append((stage_index, items, tokens))
        self.now += self._costs[stage_index].seconds(items, tokens)
        return {}

    def clock(self) -> float:
        return self.now


class TestMeasure:
    def test_every_stage_is_measured(self, student):
        costs = StageCost(2e-5, 1e-7), StageCost(5e-5, 2e-6, 1e-9)
        ticking = Ticking(student, costs)
        found = measure(ticking, clock=ticking.clock)
        for one, other in zip(found, costs, strict=True):
            assert one.seconds(8, 12) == pytest.approx(other.seconds(8, 12), rel=1e-3)
        assert {(n, t) for _, n, t in ticking.runs} == {(n, t) for n in (1, 4, 16) for t in (8, 16, 32)}

    def test_what_another_shape_costs_is_in_it(self, student):
        ticking = Ticking(student, (StageCost(1e-4, 1e-6),) * 2, another_s=2e-3)
        for cost in measure(ticking, limit_s=2.0, clock=ticking.clock):
            assert cost.seconds(1, 8) == pytest.approx(2e-3 + 1e-4 + 8e-6, rel=1e-3)

    def test_it_keeps_to_its_time(self, student):
        ticking = Ticking(student, (StageCost(1e-4, 1e-3), StageCost(1e-4, 1e-4)))
        measure(ticking, limit_s=0.5, clock=ticking.clock)
        assert ticking.now <= 0.5

    def test_the_smallest_shape_is_always_run(self, student):
        ticking = Ticking(student, (StageCost(3.0, 0.0), StageCost(2.0, 0.0)))
        found = measure(ticking, limit_s=0.01, clock=ticking.clock)
        assert [cost.seconds(1, 8) for cost in found] == pytest.approx([3.0, 2.0])
        assert {(n, t) for _, n, t in ticking.runs} == {(1, 8)}

    def test_time_left_over_goes_to_later_stages(self, student):
        ticking = Ticking(student, (StageCost(1e-6, 0.0), StageCost(0.0, 1e-4)))
        measure(ticking, limit_s=1.0, clock=ticking.clock)
        assert (1, 16, 32) in ticking.runs

    def test_a_clock_that_stands_still_breaks_nothing(self, student):
        assert all(cost.seconds(1, 1) > 0 for cost in measure(student, clock=lambda: 0.0))

    @pytest.mark.parametrize("fields", [{}, {"task": "embed"}, {"pairs": "joint"}])
    def test_real_stages_take_what_they_are_given(self, make_student, fields):
        costs = measure(make_student(**fields))
        assert all(np.isfinite(cost.seconds(16, 32)) and cost.seconds(16, 32) > 0 for cost in costs)

    def test_a_graph_that_fails_says_so(self, student):
        def broken(stage_index, feeds):
            raise RunFailed("broken")

        student.run_stage = broken
        with pytest.raises(RunFailed):
            measure(student)
