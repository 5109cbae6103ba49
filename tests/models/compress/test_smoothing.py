"""Smoothing: what moves into the weights, and that the choice is the one with the least error."""

import numpy as np
import pytest

from models.compress.int8 import quantise_weight
from models.compress.ranges import Observed
from models.compress.smoothing import capped, evened, least_error

DRAW = np.random.default_rng(7)
ONES = np.ones(8, np.float32)


def _seen(sample: np.ndarray) -> Observed:
    channels = np.abs(sample).max(axis=0)
    return Observed(sample, float(sample.min()), float(sample.max()), channels, per_item=False)


def _wide(channel: int = 2, *, times: float = 100.0) -> np.ndarray:
    sample = DRAW.normal(size=(400, 8)).astype(np.float32)
    sample[:, channel] *= times
    return sample


def _rounding(weight: np.ndarray) -> np.ndarray:
    return quantise_weight(weight).restored


def _chosen(smoothings, sample: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    return least_error(smoothings, _seen(sample), [weight], percentile=100, rounding=_rounding)


def test_evened_with_1_gives_all_channels_the_same_peak():
    channels = np.array([1, 4, 16], np.float32)
    divided = channels / evened(1.0)(channels, np.array([3, 5, 7], np.float32))
    assert divided == pytest.approx(np.full(3, 4.0), rel=1e-5)


def test_evened_with_0_gives_all_weights_the_same_peak():
    weights = np.array([1, 4, 16], np.float32)
    assert weights * evened(0.0)(np.ones(3, np.float32), weights) == pytest.approx(np.full(3, 4.0), rel=1e-5)


def test_capped_divides_only_what_lies_above():
    channels = np.array([1, 1, 2, 50], np.float32)
    assert capped(2.0)(channels, np.ones(4, np.float32)) == pytest.approx([1, 1, 1, 50 / 3])


def test_nothing_to_choose_from_divides_nothing():
    assert _chosen((), _wide(), np.ones((8, 4), np.float32)) is None


def test_a_large_channel_is_divided_where_its_weights_are_small():
    weight = DRAW.normal(size=(8, 4)).astype(np.float32)
    weight[2] /= 100
    assert _chosen((capped(1e6), capped(1.0)), _wide(), weight)[2] > 50


def test_a_large_channel_stays_where_its_weights_are_what_counts():
    weight = 1e-3 * DRAW.normal(size=(8, 4)).astype(np.float32)
    weight[2] *= 1000
    spread = (lambda channels, weights: np.where(channels > 50, 1000, 1).astype(np.float32), capped(1e6))
    assert _chosen(spread, _wide(times=30), weight).tolist() == ONES.tolist()


def test_the_choice_does_not_hang_on_the_order_of_the_candidates():
    weight = DRAW.normal(size=(8, 4)).astype(np.float32)
    sample = _wide()
    ways = (evened(0.2), evened(0.8), capped(1.0), capped(4.0))
    assert _chosen(ways, sample, weight).tolist() == _chosen(ways[::-1], sample, weight).tolist()


def test_inputs_and_weights_of_zeros_are_no_trouble():
    chosen = _chosen((evened(0.5), capped(2.0)), np.zeros((5, 8), np.float32), np.zeros((8, 4), np.float32))
    assert np.isfinite(chosen).all()
