"""What an embedder reaches: correlations of every served form, likeness to the teacher, labels by neighbours."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from models.data.rows import Row, ScoredPair
from models.evaluate.embedding import (
    NEIGHBOURS,
    correlation,
    likeness,
    neighbour_accuracy,
    pair_quality,
    pair_texts,
    vectors_of,
)
from service.bundle.load import load_bundle
from service.runtime.student import Student

SEEDS = st.integers(0, 2**32 - 1)


def unit(rows: int, dimensions: int, *, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed).standard_normal((rows, dimensions))
    return (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32)


def pairs(count: int, *, seed: int) -> list[ScoredPair]:
    scores = np.random.default_rng(seed).integers(0, 6, count)
    scores[:2] = (0, 5)
    return [ScoredPair(f"left {at}", f"right {at}", float(score)) for at, score in enumerate(scores)]


def turned(vectors: np.ndarray, *, seed: int) -> np.ndarray:
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((vectors.shape[1],) * 2))[0]
    return (vectors @ axes).astype(np.float32)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Student:
    """The toy embedder."""
    return Student(load_bundle(build_bundle(tmp_path_factory.mktemp("bundles") / "embed", task="embed")))


def test_vectors_come_in_the_order_of_the_texts_whatever_their_lengths(student: Student) -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(["film", "good", "was", "card"], size=int(n))) for n in chance.integers(0, 20, 150)]
    together = vectors_of(student, texts)
    assert (together.shape, together.dtype) == ((150, 6), np.float32)
    alone = np.concatenate([vectors_of(student, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_the_left_texts_come_before_the_right_ones() -> None:
    some = pairs(3, seed=0)
    assert pair_texts(some) == ["left 0", "left 1", "left 2", "right 0", "right 1", "right 2"]


@pytest.mark.parametrize("seed", range(4))
def test_every_form_against_plain_numpy(seed: int) -> None:
    ours, some = unit(40, 12, seed=seed), pairs(20, seed=seed)
    _, forms = pair_quality(ours, unit(40, 5, seed=seed + 1), some, prefixes=[4, 8])
    assert [form.form for form in forms] == ["full", "first 8", "first 4", "int8", "binary"]

    def reached(vectors: np.ndarray) -> float:
        left, right = np.split(vectors.astype(np.float64), 2)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = (left * right).sum(1) / lengths
        return float(spearmanr(np.round(cosines, 9), [pair.score for pair in some]).statistic)

    wanted = {
        "full": ours,
        "first 8": ours[:, :8],
        "first 4": ours[:, :4],
        "int8": np.rint(ours.astype(np.float64) * 127),
        "binary": np.where(ours > 0, 1.0, -1.0),
    }
    for form in forms:
        # rounding may swap two pairs that are as good as tied
        assert form.spearman == pytest.approx(reached(wanted[form.form]), abs=0.02), form.form


def test_quality_is_counted_against_the_whole_vectors_and_the_teacher() -> None:
    some = pairs(60, seed=0)
    scores = np.array([pair.score for pair in some]) / 5
    left = unit(60, 12, seed=0)
    noise = unit(60, 12, seed=1)
    right = left * scores[:, None] + noise * (1.01 - scores[:, None])
    ours = np.concatenate([left, right / np.linalg.norm(right, axis=1, keepdims=True)]).astype(np.float32)
    theirs = turned(ours, seed=2)
    reference, forms = pair_quality(ours, theirs, some, prefixes=[6])
    full = forms[0]
    assert reference == pytest.approx(full.spearman, abs=1e-3)
    assert full.of_full == 1.0
    assert full.retention == pytest.approx(1, abs=2e-3)
    assert full.spearman > 0.9
    assert full.low < full.spearman < full.high
    for form in forms[1:]:
        assert form.of_full == pytest.approx(form.spearman / full.spearman)
        assert form.retention == pytest.approx(form.spearman / reference)
        assert form.spearman < full.spearman + 0.01


def test_an_interval_is_the_same_every_time_and_narrows_with_more_pairs() -> None:
    widths = []
    for count in (30, 600):
        ours, some = unit(2 * count, 6, seed=0), pairs(count, seed=1)
        first, again = (pair_quality(ours, ours, some, prefixes=[])[1][0] for _ in range(2))
        assert (first.low, first.high) == (again.low, again.high)
        widths.append(first.high - first.low)
    assert widths[1] < widths[0] / 2


def test_a_student_whose_vectors_are_all_alike_has_no_correlation() -> None:
    """No number, and no error: the gates refuse it, since nothing is above NaN."""
    same = np.tile(unit(1, 4, seed=0), (24, 1))
    reference, forms = pair_quality(same, unit(24, 4, seed=1), pairs(12, seed=0), prefixes=[2])
    assert math.isfinite(reference)
    assert all(math.isnan(form.spearman) and math.isnan(form.retention) for form in forms)
    assert all(math.isnan(form.low) and math.isnan(form.high) for form in forms)


def test_a_teacher_without_correlation_leaves_no_retention() -> None:
    same = np.tile(unit(1, 4, seed=0), (24, 1))
    _, forms = pair_quality(unit(24, 4, seed=1), same, pairs(12, seed=0), prefixes=[])
    assert math.isfinite(forms[0].spearman)
    assert math.isnan(forms[0].retention)


def test_two_scores_in_ten_pairs_are_enough_for_an_interval() -> None:
    """Many of its draws hold only one of the two scores."""
    some = [ScoredPair("a", "b", float(at == 0)) for at in range(10)]
    _, forms = pair_quality(unit(20, 4, seed=0), unit(20, 4, seed=0), some, prefixes=[])
    assert math.isfinite(forms[0].low)
    assert math.isfinite(forms[0].high)


@pytest.mark.parametrize(
    ("values", "scores", "wanted"),
    [([1.0, 2.0, 3.0], [5, 6, 60], 1.0), ([1.0, 2.0, 3.0], [3, 2, 1], -1.0), ([1.0, 1.0, 1.0], [3, 2, 1], math.nan)],
)
def test_correlation_is_of_ranks(values: list[float], scores: list[float], wanted: float) -> None:
    assert correlation(np.array(values), np.array(scores, float)) == pytest.approx(wanted, nan_ok=True)


@given(SEEDS, st.integers(32, 60))
def test_a_space_is_exactly_like_itself(seed: int, rows: int) -> None:
    vectors = unit(rows, 6, seed=seed)
    same = likeness(vectors, vectors)
    assert same.rows == rows
    assert (same.cosine, same.worst, same.similarities, same.overlap) == pytest.approx((1, 1, 1, 1), abs=1e-5)


@given(SEEDS)
def test_a_turned_space_has_the_same_neighbours_but_other_cosines(seed: int) -> None:
    vectors = unit(50, 6, seed=seed)
    found = likeness(vectors, turned(vectors, seed=seed + 1))
    assert found.similarities == pytest.approx(1, abs=1e-3)
    assert found.overlap > 0.99
    assert found.cosine < 0.99


def test_strangers_are_not_alike() -> None:
    found = likeness(unit(500, 16, seed=0), unit(500, 16, seed=1))
    assert abs(found.cosine) < 0.05
    assert abs(found.similarities) < 0.05
    assert found.overlap < 2 * NEIGHBOURS / 500 + 0.02
    assert found.worst < -0.4


def test_the_overlap_counts_the_ten_nearest_others() -> None:
    """By hand: both spaces are sorted by cosine, the text itself left out."""
    ours, theirs = unit(40, 5, seed=0), unit(40, 5, seed=1)

    def nearest(vectors: np.ndarray) -> list[set[int]]:
        similar = vectors.astype(np.float64) @ vectors.T
        np.fill_diagonal(similar, -2)
        return [set(row.tolist()) for row in np.argsort(-similar, axis=1)[:, :NEIGHBOURS]]

    wanted = np.mean([len(a & b) / NEIGHBOURS for a, b in zip(nearest(ours), nearest(theirs), strict=True)])
    assert likeness(ours, theirs).overlap == pytest.approx(wanted)


def labelled(labels: list[str]) -> list[Row]:
    return [Row(f"text {at}", label) for at, label in enumerate(labels)]


def test_labels_go_by_the_ten_nearest_weighted_by_nearness() -> None:
    """By hand, with the votes 1 over the cosine distance."""
    chance = np.random.default_rng(3)
    fit, test = unit(80, 4, seed=0), unit(30, 4, seed=1)
    names = [str(label) for label in chance.choice(["a", "b", "c"], 80)]
    gold = [str(label) for label in chance.choice(["a", "b", "c"], 30)]
    right = 0
    for vector, label in zip(test, gold, strict=True):
        apart = 1 - fit.astype(np.float64) @ vector
        votes: dict[str, float] = {}
        for place in np.argsort(apart)[:NEIGHBOURS]:
            votes[names[place]] = votes.get(names[place], 0) + 1 / apart[place]
        right += max(votes, key=lambda name: votes[name]) == label
    assert neighbour_accuracy(fit, labelled(names), test, labelled(gold)) == pytest.approx(right / 30)


def test_a_text_that_was_labelled_keeps_its_label() -> None:
    fit = unit(40, 4, seed=0)
    names = [f"label {at % 12}" for at in range(40)]
    assert neighbour_accuracy(fit, labelled(names), fit, labelled(names)) == 1.0


def test_labels_may_be_unknown_to_the_labelled_texts() -> None:
    fit, test = unit(20, 4, seed=0), unit(4, 4, seed=1)
    assert neighbour_accuracy(fit, labelled(["a"] * 20), test, labelled(["a", "b", "a", "b"])) == 0.5
