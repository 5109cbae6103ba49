"""What runs will cost, and when what waits will be done."""

import pytest

from service.engine.forecast import RUN_S, Forecast, Stretch
from service.engine.lane import SICK_INPUTS, StudentLane
from service.runtime.cost import StageCost

COSTS = (StageCost(1e-3, 1e-5), StageCost(2e-3, 3e-5))


class TestForecast:
    def test_an_outlook_adds_what_the_engine_adds(self):
        forecast = Forecast(COSTS, stages=2)
        first, second = forecast.outlooks
        assert first.run == StageCost(1e-3 + RUN_S, 1e-5)
        assert first.ahead.base_s == pytest.approx(3e-3 + 2 * RUN_S)
        assert first.ahead.token_s == pytest.approx(4e-5)
        assert first.peak == second.run == second.ahead == second.peak
        assert forecast.seconds(0, 2, 10) == pytest.approx(1e-3 + RUN_S + 2e-4)

    def test_nobody_measured_it(self):
        assert Forecast(COSTS, stages=2).measured
        assert not Forecast((), stages=2).measured
        assert not Forecast(COSTS[:1], stages=2).measured

    def test_it_follows_what_runs_really_cost(self):
        forecast = Forecast(COSTS, stages=2)
        for _ in range(200):
            forecast.ran(0, items=10, longest=10, stayed=5, seconds=2 * COSTS[0].seconds(10, 10))
        assert forecast.outlooks[0].run.base_s == pytest.approx(2e-3 + RUN_S, rel=0.01)
        assert forecast.outlooks[1].run.base_s == pytest.approx(2e-3 + RUN_S)

    def test_one_odd_run_moves_it_little(self):
        forecast = Forecast(COSTS, stages=2)
        forecast.ran(0, items=10, longest=10, stayed=5, seconds=100.0)
        assert forecast.outlooks[0].run.base_s < 2e-3

    def test_who_leaves_costs_the_later_stages_nothing(self):
        forecast = Forecast(COSTS, stages=2)
        for _ in range(100):
            forecast.ran(0, items=10, longest=10, stayed=2, seconds=1e-3)
        assert forecast.survive[0] == pytest.approx(0.2, abs=0.03)
        assert forecast.outlooks[0].ahead.token_s < 2.5e-5

    def test_a_token_s_seconds_start_at_full_depth_and_are_learnt(self):
        forecast = Forecast(COSTS, stages=2)
        full = forecast.token_s
        assert full == pytest.approx((3e-3 + 2 * RUN_S + 256 * 4e-5) / 256)
        for _ in range(1000):
            forecast.ran(0, items=10, longest=10, stayed=0, seconds=1e-3)
            forecast.ended(10, 100)
        assert forecast.token_s == pytest.approx((1e-3 + RUN_S) / 100, rel=0.01)
        assert forecast.item_tokens == pytest.approx(10, rel=0.01)


class TestStretch:
    def test_two_slots_halve_it(self):
        assert Stretch(slots=2).factor == 0.5

    def test_only_time_with_waiting_work_counts(self):
        stretch = Stretch(slots=1)
        for moment in range(100):
            stretch.note(moment, busy_s=0.5, waiting=moment < 50)
        assert stretch.factor == pytest.approx(2.0, rel=0.02)

    def test_a_long_gap_counts_as_a_shorter_one(self):
        stretch = Stretch(slots=1)
        stretch.note(0.0, busy_s=0.001, waiting=True)
        stretch.note(3600.0, busy_s=0.001, waiting=False)
        assert 1 < stretch.factor < 2


class TestLane:
    def test_a_stage_that_fails_whatever_it_is_given_makes_it_sick(self):
        lane = StudentLane(COSTS, stages=2)
        for number in range(SICK_INPUTS):
            assert not lane.sick
            lane.failed(1, bytes([number]))
            lane.succeeded(0)
        assert lane.sick
        lane.failed(1, b"one more")
        lane.succeeded(1)
        assert not lane.sick

    def test_one_poisoned_text_again_and_again_does_not(self):
        lane = StudentLane(COSTS, stages=2)
        for _ in range(100):
            lane.failed(0, b"poison")
        assert not lane.sick
