"""Fitted temperatures make scores mean what they say."""

import numpy as np
import pytest
from scipy.special import softmax

from models.evaluate.metrics import calibration_error
from models.evaluate.temperature import BOUNDS, fit_score_temperatures, fit_temperature, fit_temperatures


def drawn(temperature: float, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right at this temperature, and labels drawn from them."""
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (rows, 4))
    share = softmax(logits / temperature, axis=1).cumsum(axis=1)
    labels = (draw.random((rows, 1)) > share).sum(axis=1)
    return logits.astype(np.float32), np.minimum(labels, 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_true_temperature_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.04)


def test_the_fit_calibrates() -> None:
    logits, labels = drawn(3.0)
    fitted = fit_temperature(logits, labels)
    before, after = (
        calibration_error(softmax(logits / t, axis=1).max(axis=1), logits.argmax(axis=1) == labels)
        for t in (1.0, fitted)
    )
    assert after < 0.02 < before


def test_soft_targets_give_their_own_temperature() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (500, 5))
    assert fit_temperature(logits, softmax(logits / 2.0, axis=1)) == pytest.approx(2.0, rel=1e-3)


def test_separable_rows_stay_within_the_bounds() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]] * 5
    assert BOUNDS[0] <= fit_temperature(logits, np.array([0, 1, 2, 0])) <= 0.2
    assert 0.99 * BOUNDS[1] <= fit_temperature(logits, np.array([1, 2, 0, 1])) <= BOUNDS[1]


def test_huge_logits_do_not_overflow() -> None:
    assert np.isfinite(fit_temperature(np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0])))


def test_inner_exits_are_fitted_to_full_depth_and_the_last_to_gold() -> None:
    logits, labels = drawn(2.0)
    inner = np.random.default_rng(2).normal(0, 1, logits.shape)
    found = fit_temperatures([inner, logits], gold=labels)
    assert found[0] == fit_temperature(inner, logits.argmax(axis=1))
    assert found[1] == fit_temperature(logits, labels)


def test_without_gold_the_last_exit_keeps_one() -> None:
    logits, labels = drawn(2.0, rows=100)
    assert fit_temperatures([logits, logits])[1] == 1.0
    assert fit_temperatures([logits, logits], gold=np.full(100, -1))[1] == 1.0
    some = np.where(np.arange(100) < 60, labels, -1)
    assert fit_temperatures([logits, logits], gold=some)[1] == fit_temperature(logits[:60], labels[:60])


def test_the_scores_of_inner_exits_are_fitted_to_gold() -> None:
    logits, labels = drawn(2.0)
    inner = np.random.default_rng(2).normal(0, 1, logits.shape)
    assert fit_score_temperatures([inner, logits], gold=labels) == (fit_temperature(inner, labels), None)
    assert fit_score_temperatures([inner, logits]) == (None, None)
    assert fit_score_temperatures([inner, logits], gold=np.full(len(labels), -1)) == (None, None)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
