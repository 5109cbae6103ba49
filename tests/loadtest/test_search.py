"""The bisection, on functions whose answer is known."""

import itertools
import math

import pytest

from loadtest.search import Range, highest_rate


@pytest.mark.parametrize("limit", [110.0, 333.0, 999.0, 1900.0])
def test_the_limit_is_found_to_the_precision(limit):
    found = highest_rate(lambda rate: rate <= limit, Range(100, 2000, 0.02, 1))
    assert found.highest <= limit < found.fails_at
    assert found.fails_at / found.highest <= 1.02


def test_not_even_the_lowest_holds():
    found = highest_rate(lambda rate: False, Range(100, 200, 0.1, 1))
    assert (found.highest, found.fails_at, found.tried) == (0.0, 100, ((100, False),))


def test_even_the_highest_holds():
    found = highest_rate(lambda rate: True, Range(100, 200, 0.1, 1))
    assert (found.highest, found.fails_at) == (200, math.inf)


def test_a_rate_holds_when_most_of_its_runs_do():
    asked = []
    turns = itertools.cycle([True, False, True])

    def holds(rate):
        asked.append(rate)
        return next(turns) if rate < 400 else False

    found = highest_rate(holds, Range(100, 800, 0.2, 3))
    assert 400 / 1.2 < found.highest < 400
    # two of three settle it either way: a rate that fails twice is not tried again
    assert asked.count(800) == 2 and asked.count(100) == 3


def test_every_rate_that_was_tried_is_told():
    found = highest_rate(lambda rate: rate <= 250, Range(100, 400, 0.5, 1))
    assert found.tried == (
        (100, True),
        (400, False),
        (pytest.approx(200), True),
        (pytest.approx(282.84, abs=0.01), False),
    )
