"""The path, the fixed sequence and the certificate: against brute force, tables and each other."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from models.evaluate.exits import (
    NOBODY,
    ExitRows,
    Path,
    Risks,
    certified_steps,
    certify,
    choose_path,
    exit_taken,
    fixed_sequence,
    label_bounds,
    p_values,
    tally,
)

DEPTHS = (0.1, 0.5, 1.0)
RISKS = (0.005, 0.01, 0.02, 0.05)
FOUR = Risks(RISKS, 0.05)


def random_rows(seed: int, *, rows: int = 400, inner: int = 2, wrong: float = 0.5) -> ExitRows:
    """Inner exits that err more where they are less sure; some confidences tie."""
    draw = np.random.default_rng(seed)
    ease = draw.random(rows)
    confidences = np.round(np.clip(ease[:, None] + draw.normal(0, 0.1, (rows, inner)), 0, 1), 2)
    errs = draw.random((rows, inner)) < wrong * (1 - ease[:, None]) ** 2
    return ExitRows(confidences, np.concatenate([errs, np.zeros((rows, 1))], axis=1).astype(np.int64))


def shared_path(levels: list[float], inner: int) -> Path:
    return Path(np.repeat(np.array(levels)[:, None], inner, axis=1), (0.0,) * inner)


def counted_by_hand(rows: ExitRows, thresholds: np.ndarray) -> tuple[int, list[int]]:
    errors, leaving = 0, [0] * rows.labels.shape[1]
    for confidences, labels in zip(rows.confidences, rows.labels, strict=True):
        met = [i for i, (c, t) in enumerate(zip(confidences, thresholds, strict=True)) if c >= t]
        taken = met[0] if met else len(thresholds)
        leaving[taken] += 1
        errors += int(labels[taken] != labels[-1])
    return errors, leaving


@given(seed=st.integers(0, 2**32 - 1), inner=st.integers(1, 3))
def test_tally_equals_counting_row_by_row(seed: int, inner: int) -> None:
    rows = random_rows(seed, rows=60, inner=inner)
    levels = np.sort(np.random.default_rng(seed).random((7, inner)), axis=0)[::-1]
    path = Path(levels, (0.0,) * inner)
    counted = tally(path, rows)
    for step in range(7):
        errors, leaving = counted_by_hand(rows, path.thresholds[step])
        assert counted.errors[step] == errors
        assert counted.leaving[step].tolist() == leaving


def test_tally_of_many_sets_is_that_of_each() -> None:
    rows = random_rows(1)
    draws = np.random.default_rng(2).integers(rows.rows, size=(3, 4, 50))
    path = shared_path([0.9, 0.5, 0.1], 2)
    together = tally(path, rows.take(draws))
    assert together.errors.shape == (3, 4, 3)
    one = tally(path, rows.take(draws[1, 2]))
    assert together.errors[1, 2].tolist() == one.errors.tolist()
    assert together.leaving[1, 2].tolist() == one.leaving.tolist()


def test_exit_taken_is_the_first_exit_whose_threshold_is_met() -> None:
    rows = ExitRows(np.array([[0.9, 0.9], [0.5, 0.8], [0.5, 0.5], [0.9, 0.1]]), np.zeros((4, 3), dtype=np.int64))
    assert exit_taken(rows, (0.9, 0.8)).tolist() == [0, 1, 2, 0]
    assert exit_taken(rows, (None, 0.8)).tolist() == [1, 1, 2, 2]
    assert exit_taken(rows, (None, None)).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("risk", "rows_needed"),
    [
        (0.005, [598, 947, 1258, 1549]),
        (0.01, [299, 473, 628, 773]),
        (0.02, [149, 236, 313, 386]),
    ],
)
def test_rows_needed_to_pass_with_so_many_errors(risk: float, rows_needed: list[int]) -> None:
    for errors, rows in enumerate(rows_needed):
        assert fixed_sequence(np.array([errors]), rows, risk, 0.05) == 0
        assert fixed_sequence(np.array([errors]), rows - 1, risk, 0.05) == -1


@pytest.mark.parametrize(
    ("errors", "last"),
    [
        ([0, 0, 4, 5], 2),
        ([4, 4, 4, 4], 3),
        ([5, 0, 0, 0], -1),
        ([0, 9, 0, 0], 0),
    ],
)
def test_the_first_failure_ends_the_sequence(errors: list[int], last: int) -> None:
    """With 1,000 rows, risk 1% and level 5%, four errors pass and five do not."""
    assert fixed_sequence(np.array(errors), 1000, 0.01, 0.05) == last


def test_many_sequences_at_once() -> None:
    errors = np.array([[0, 4, 9], [9, 0, 0], [0, 0, 0]])
    assert fixed_sequence(errors, 1000, 0.01, 0.05).tolist() == [1, -1, 2]


def test_p_values_are_exact_binomial() -> None:
    errors = np.array([0, 3, 10, 500])
    assert p_values(errors, 500, 0.02) == pytest.approx(binom.cdf(errors, 500, 0.02))


def test_certified_points_are_what_the_rows_say() -> None:
    rows = random_rows(3, rows=2000, wrong=0.2)
    path = choose_path(random_rows(4, wrong=0.2), depths=DEPTHS, risks=RISKS)
    points = certify(path, rows, depths=DEPTHS, risks=FOUR)
    assert [point.risk for point in points] == list(RISKS)
    for point in points:
        taken = exit_taken(rows, point.thresholds)
        answered = rows.labels[np.arange(rows.rows), taken]
        assert point.errors == (answered != rows.labels[:, -1]).sum()
        assert point.exit_shares == pytest.approx(np.bincount(taken, minlength=3) / rows.rows)
        assert point.mean_depth == pytest.approx(np.asarray(DEPTHS)[taken].mean())
        assert point.p_value == pytest.approx(binom.cdf(point.errors, 2000, point.risk))
        assert point.p_value <= 0.05 / 4
        assert point.rows == 2000


@given(seed=st.integers(0, 10_000), rows=st.integers(100, 1500))
def test_a_larger_risk_never_gets_safer_thresholds(seed: int, rows: int) -> None:
    path = choose_path(random_rows(seed), depths=DEPTHS, risks=RISKS, max_steps=40)
    points = certify(path, random_rows(seed + 1, rows=rows), depths=DEPTHS, risks=FOUR)
    values = [[NOBODY if t is None else t for t in point.thresholds] for point in points]
    assert [point.risk for point in points] == sorted(point.risk for point in points)
    for tight, loose in pairwise(values):
        assert all(a >= b for a, b in zip(tight, loose, strict=True))


def test_risks_without_enough_rows_are_not_offered() -> None:
    path, rows = shared_path([0.9, 0.5], 2), random_rows(5, rows=200, wrong=0.0)
    points = certify(path, rows, depths=DEPTHS, risks=FOUR)
    # at level 0.0125 even 0 errors need 217 rows for 2% and 86 for 5%
    assert [point.risk for point in points] == [0.05]
    assert certify(path, rows.take(np.arange(50)), depths=DEPTHS, risks=FOUR) == ()


def test_each_risk_gets_its_part_of_delta() -> None:
    path, rows = shared_path([0.9], 2), random_rows(5, rows=300, wrong=0.0)
    alone = certify(path, rows, depths=DEPTHS, risks=Risks((0.01,), 0.05))
    together = certify(path, rows, depths=DEPTHS, risks=Risks((0.01, 0.02), 0.05))
    assert [point.risk for point in alone] == [0.01]
    assert [point.risk for point in together] == [0.02]


def test_the_favoured_risk_gets_half_of_delta() -> None:
    assert Risks((0.02, 0.01), 0.04).levels() == ((0.01, 0.02), (0.02, 0.02))
    levels = dict(Risks(RISKS, 0.06, favoured=0.01).levels())
    assert levels == pytest.approx({0.005: 0.01, 0.01: 0.03, 0.02: 0.01, 0.05: 0.01})
    assert Risks((0.01,), 0.05, favoured=0.01).levels() == ((0.01, 0.05),)
    assert Risks((0.01, 0.02), 0.05, favoured=0.5).levels() == ((0.01, 0.025), (0.02, 0.025))


def test_what_is_certified_for_a_risk_is_so_for_every_larger_one() -> None:
    """The favoured 1% passes a step that 1.01% fails at its smaller level; it holds for 1.01% all the same."""
    errors = np.array([0, 5])
    alone = [fixed_sequence(errors, 1150, risk, level) for risk, level in ((0.01, 0.04), (0.0101, 0.001))]
    assert alone == [1, 0]
    risks = Risks((0.01, *(0.0101 + i / 10_000 for i in range(20))), 0.08, favoured=0.01)
    assert certified_steps(errors, 1150, risks)[:2].tolist() == [1, 1]


def test_when_the_exits_are_always_wrong_nobody_leaves() -> None:
    labels = np.array([[1, 1, 0]] * 1000)
    rows = ExitRows(np.full((1000, 2), 0.9), labels)
    path = choose_path(rows.take(np.arange(100)), depths=DEPTHS, risks=RISKS)
    points = certify(path, rows, depths=DEPTHS, risks=FOUR)
    assert all(point.thresholds == (None, None) and point.mean_depth == 1.0 for point in points)


def test_when_the_exits_are_always_right_everybody_leaves_at_the_first() -> None:
    rows = random_rows(6, rows=1000, wrong=0.0)
    path = choose_path(rows.take(np.arange(300)), depths=DEPTHS, risks=RISKS)
    (point,) = certify(path, rows, depths=DEPTHS, risks=Risks((0.05,), 0.05))
    assert point.exit_shares[0] > 0.98


@pytest.mark.parametrize(("risks", "delta"), [((), 0.05), ((0.0,), 0.05), ((1.0,), 0.05), ((0.1,), 0.0), ((0.1,), 1.0)])
def test_risks_and_delta_must_be_shares(risks: tuple[float, ...], delta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Risks(risks, delta)


@given(seed=st.integers(0, 10_000), inner=st.integers(1, 4), max_steps=st.integers(2, 80))
def test_a_path_begins_with_nobody_and_never_rises(seed: int, inner: int, max_steps: int) -> None:
    rows = random_rows(seed, rows=80, inner=inner)
    depths = (*np.linspace(0.1, 0.9, inner), 1.0)
    path = choose_path(rows, depths=depths, risks=RISKS, max_steps=max_steps)
    assert (path.thresholds[0] == NOBODY).all()
    assert (np.diff(path.thresholds, axis=0) <= 0).all()
    assert (np.diff(path.thresholds, axis=0) != 0).any(axis=1).all()
    assert len(path.thresholds) <= max_steps


def test_the_boldest_step_lets_everybody_leave_at_the_first_exit() -> None:
    rows = random_rows(7)
    path = choose_path(rows, depths=DEPTHS, risks=RISKS)
    if path.form == "shared":
        assert tally(path, rows).leaving[-1].tolist()[0] >= rows.rows - 4


def test_an_offset_is_taken_where_the_second_exit_is_overconfident() -> None:
    """The first exit is right whenever it is at 0.6; the second needs 0.95 to be as good."""
    draw = np.random.default_rng(8)
    confidences = draw.random((3000, 2))
    wrong = np.stack([confidences[:, 0] < 0.6, confidences[:, 1] < 0.95], axis=1) & (draw.random((3000, 2)) < 0.5)
    rows = ExitRows(confidences, np.concatenate([wrong, np.zeros((3000, 1))], axis=1).astype(np.int64))
    path = choose_path(rows, depths=DEPTHS, risks=RISKS)
    assert path.form == "offset"
    assert path.offsets[0] == 0
    assert path.offsets[1] > 0


def test_alike_exits_share_one_threshold() -> None:
    draw = np.random.default_rng(9)
    confidences = draw.random((2000, 2))
    wrong = draw.random((2000, 2)) > confidences
    rows = ExitRows(confidences, np.concatenate([wrong, np.zeros((2000, 1))], axis=1).astype(np.int64))
    assert choose_path(rows, depths=(0.5, 0.5, 1.0), risks=(0.05, 0.1)).form == "shared"


def test_a_student_without_inner_exits_gets_points_that_change_nothing() -> None:
    rows = ExitRows(np.zeros((500, 0)), np.zeros((500, 1), dtype=np.int64))
    path = choose_path(rows, depths=(1.0,), risks=RISKS)
    points = certify(path, rows, depths=(1.0,), risks=FOUR)
    assert [point.risk for point in points] == [0.01, 0.02, 0.05]
    assert all(point.thresholds == () and point.errors == 0 and point.exit_shares == (1.0,) for point in points)


def test_malformed_paths_and_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="never rise"):
        shared_path([0.5, 0.9], 1)
    with pytest.raises(ValueError, match="at least one step"):
        Path(np.zeros((0, 2)), (0.0, 0.0))
    with pytest.raises(ValueError, match="inner exits"):
        ExitRows(np.zeros((3, 2)), np.zeros((3, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="finite"):
        ExitRows(np.full((3, 1), np.nan), np.zeros((3, 2), dtype=np.int64))


def test_label_bounds_are_exact_and_leave_small_labels_out() -> None:
    answered = np.array([0] * 100 + [1] * 40 + [2] * 5)
    reference = answered.copy()
    reference[[100, 101]] = 0
    found = label_bounds(answered, reference, labels=("a", "b", "c"))
    assert [(bound.label, bound.rows, bound.errors) for bound in found] == [("a", 100, 0), ("b", 40, 2)]
    assert found[0].upper == pytest.approx(1 - 0.05 ** (1 / 100))
    assert binom.cdf(2, 40, found[1].upper) == pytest.approx(0.05)


def test_a_label_that_is_always_wrong_is_bounded_by_one() -> None:
    (bound,) = label_bounds(np.zeros(30, dtype=np.int64), np.ones(30, dtype=np.int64), labels=("a", "b"))
    assert bound.upper == 1.0
