"""Measures against small cases worked out by hand."""

import numpy as np
import pytest

from models.evaluate.metrics import (
    accuracy,
    agreement,
    calibration_error,
    exact_test,
    macro_f1,
    reliability,
    retention,
)

GOLD = np.array([0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 1, 0, 2, 1])


def test_accuracy_and_agreement_are_shares_of_rows() -> None:
    assert accuracy(PREDICTED, GOLD) == pytest.approx(4 / 6)
    assert agreement(PREDICTED, PREDICTED) == 1.0


def test_macro_f1_averages_over_the_labels_that_occur() -> None:
    # label 0: P 2/3 R 1; label 1: P 1/2 R 1/2; label 2: P 1 R 1/2
    assert macro_f1(PREDICTED, GOLD) == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert macro_f1(np.zeros(4, dtype=int), np.array([0, 0, 1, 1])) == pytest.approx((2 / 3) / 2)


@pytest.mark.parametrize(
    ("errors", "rows", "rejected"), [(41, 3080, True), (40, 3080, False), (26, 1821, True), (25, 1821, False)]
)
def test_a_promise_of_one_per_cent_is_refuted_from_so_many_errors(errors: int, rows: int, rejected: bool) -> None:
    assert exact_test(errors, rows, risk=0.01).rejected is rejected


def test_no_error_refutes_nothing() -> None:
    found = exact_test(0, 100, risk=0.01)
    assert found.p_value == 1.0
    assert not found.rejected


def test_a_calibrated_score_has_no_calibration_error() -> None:
    confidence = np.repeat([0.2, 0.5, 0.8], 10)
    right = np.concatenate([np.arange(10) < share for share in (2, 5, 8)])
    assert calibration_error(confidence, right) == pytest.approx(0.0)


def test_calibration_error_weighs_gaps_by_rows() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.1])
    right = np.array([True, False, False, False])
    assert calibration_error(confidence, right) == pytest.approx(0.75 * (0.9 - 1 / 3) + 0.25 * 0.1)


def test_reliability_bins_hold_every_row_and_both_ends() -> None:
    bins = reliability(np.array([0.0, 0.04, 1.0]), np.array([False, True, True]))
    assert [each.rows for each in bins] == [2, 1]
    assert bins[0].right == 0.5
    assert bins[1].confidence == 1.0


def test_retention_is_a_ratio_with_a_paired_interval() -> None:
    draw = np.random.default_rng(0)
    gold = draw.integers(3, size=2000)
    teacher = np.where(draw.random(2000) < 0.92, gold, (gold + 1) % 3)
    student = np.where(draw.random(2000) < 0.01, (teacher + 1) % 3, teacher)
    found = retention(student, teacher, gold)
    assert found.value == pytest.approx(accuracy(student, gold) / accuracy(teacher, gold))
    assert found.low < found.value < found.high
    # paired: the two err together, so the interval is far narrower than of independent samples
    assert found.high - found.low < 0.012
    assert retention(student, teacher, gold) == found


def test_the_same_answers_retain_everything() -> None:
    found = retention(GOLD, GOLD, GOLD)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_retention_of_a_teacher_that_is_never_right_is_refused() -> None:
    with pytest.raises(ValueError, match="right on one"):
        retention(GOLD, (GOLD + 1) % 3, GOLD)
