"""The statistics against published tables, closed forms and simulation."""

import doctest
import math

import numpy as np
import pytest

from loadtest import arrivals, generator, mixture, report, scenario, search, stats, wire
from loadtest.stats import at_least, percentile, ratio_bound, slope_bound, student_t, upper_share


@pytest.mark.parametrize("module", [arrivals, generator, mixture, report, scenario, search, stats, wire])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 3.0), (0.8, 4.0), (0.81, 5.0), (1.0, 5.0), (0.01, 1.0)])
def test_percentiles_are_nearest_rank(share, wanted):
    assert percentile(np.array([5.0, 1.0, 4.0, 2.0, 3.0]), share) == wanted


def test_the_percentile_of_nothing_is_not_a_number():
    assert math.isnan(percentile(np.array([]), 0.5))


def test_lost_requests_are_the_slowest():
    assert percentile(np.array([1.0, math.inf, 2.0]), 0.99) == math.inf


@pytest.mark.parametrize(
    ("probability", "freedom", "wanted"),
    [(0.95, 1, 6.314), (0.95, 2, 2.920), (0.95, 9, 1.833), (0.975, 10, 2.228), (0.99, 30, 2.457), (0.5, 4, 0.0)],
)
def test_t_quantiles_are_those_of_the_tables(probability, freedom, wanted):
    assert student_t(probability, freedom) == pytest.approx(wanted, abs=6e-4)


def test_a_ratio_is_the_geometric_mean_of_the_pairs():
    bound = ratio_bound([2.0, 8.0], [1.0, 1.0])
    assert bound.ratio == pytest.approx(4.0)
    # logs differ from their mean by log 2; the standard error is log 2; one degree of freedom
    assert bound.low == pytest.approx(4.0 * math.exp(-6.3138 * math.log(2)), rel=1e-3)
    assert bound.high == pytest.approx(4.0 * math.exp(6.3138 * math.log(2)), rel=1e-3)


def test_what_both_sides_share_does_not_widen_a_ratio():
    slow = [1.0, 0.5, 0.25, 2.0]
    bound = ratio_bound([3 * value for value in slow], slow)
    assert bound.low == pytest.approx(3.0) and bound.high == pytest.approx(3.0)


def test_the_lower_bound_of_a_ratio_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = np.exp(rng.normal(0.2, 0.3, size=(2000, 10)))
    holds = sum(ratio_bound(list(draw), [1.0] * 10).low <= math.exp(0.2) for draw in draws)
    assert 0.935 <= holds / 2000 <= 0.965


def test_one_pair_bounds_nothing():
    bound = ratio_bound([2.0], [1.0])
    assert (bound.low, bound.high) == (0.0, math.inf)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [0.0]), ([-1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_ratios_of_what_is_not_paired_or_positive_are_refused(first, second):
    with pytest.raises(ValueError):
        ratio_bound(first, second)


def test_the_binomial_tail_is_exact():
    assert at_least(0, 10, 0.1) == 1.0
    assert at_least(10, 10, 0.5) == pytest.approx(0.5**10)
    assert at_least(1, 3, 0.1) == pytest.approx(1 - 0.9**3)
    assert at_least(1, 5, 0.0) == 0.0
    assert at_least(5, 5, 1.0) == 1.0


def test_the_upper_bound_of_a_share_is_the_rule_of_three_where_nothing_went_wrong():
    assert upper_share(0, 100) == pytest.approx(1 - 0.05**0.01, abs=1e-9)
    assert upper_share(7, 7) == 1.0
    assert at_least(14, 1000, upper_share(13, 1000)) == pytest.approx(0.95, abs=1e-6)


def test_a_slope_is_found_and_bounded():
    seconds = np.arange(600.0)
    noise = np.random.default_rng(0).normal(0, 5, 600)
    bound = slope_bound(seconds, 100 + 0.02 * seconds + noise)
    assert bound.slope == pytest.approx(0.02, abs=0.005)
    assert bound.start == pytest.approx(100, abs=2)
    assert bound.slope < bound.high < 0.03


def test_a_flat_line_has_no_slope():
    bound = slope_bound(np.arange(40.0), np.full(40, 7.0))
    assert (bound.start, bound.slope, bound.high) == pytest.approx((7.0, 0.0, 0.0))


def test_too_few_samples_have_no_slope():
    with pytest.raises(ValueError, match="at least 20"):
        slope_bound(np.arange(5.0), np.arange(5.0))
