"""Moments: their number, their spread, and that a seed fixes them."""

import numpy as np
import pytest

from loadtest.arrivals import bursts, constant, poisson, recorded
from loadtest.errors import ScenarioInvalid


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process():
    moments = poisson(200.0, 500.0, seed=1)
    counts = np.histogram(moments, bins=500, range=(0, 500))[0]
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(100_000, abs=4 * 100_000**0.5)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.3)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert (gaps > 0).all() and moments[0] >= 0 and moments[-1] < 500


def test_a_seed_fixes_the_moments():
    assert (poisson(50.0, 3.0, seed=7) == poisson(50.0, 3.0, seed=7)).all()
    assert len(np.intersect1d(poisson(50.0, 3.0, seed=7), poisson(50.0, 3.0, seed=8))) == 0


def test_constant_arrivals_are_as_many_as_the_rate_says():
    moments = constant(30.0, 2.0)
    assert len(moments) == 60 and np.diff(moments) == pytest.approx(np.full(59, 1 / 30))


def test_bursts_keep_both_rates():
    moments = bursts(1000.0, 100.0, on_s=0.5, off_s=1.5, idle_rate_per_s=100.0, seed=2)
    phase = moments % 2.0
    on, off = (phase < 0.5).sum(), (phase >= 0.5).sum()
    assert on == pytest.approx(25_000, abs=650) and off == pytest.approx(7_500, abs=350)
    assert moments[-1] < 100.0


def test_bursts_may_be_silent_between():
    moments = bursts(100.0, 9.0, on_s=1.0, off_s=4.0, seed=3)
    assert len(moments) and ((moments % 5.0) < 1.0).all()


def test_a_recording_starts_at_once_and_is_played_at_its_speed():
    assert recorded([10.0, 11.0, 14.0, 99.0], 3.0, speed=2.0).tolist() == [0.0, 0.5, 2.0]


def test_more_requests_than_fit_are_refused():
    with pytest.raises(ScenarioInvalid, match="requests in one run"):
        poisson(1e6, 1e5, seed=0)
