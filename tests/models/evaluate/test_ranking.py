"""Measures of ranking: by hand, against scikit-learn's, with ties and misses, and the comparison of rankers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from models.data.rank_sets import Ranking
from models.data.rows import LabelledPassage
from models.evaluate.ranking import (
    MEASURES,
    Scored,
    agreement,
    average_precision,
    compare_rankers,
    ndcg,
    order_of,
    recall,
    reciprocal_rank,
    top_overlap,
)


def ranking(*grades: float, missed: int = 0) -> Ranking:
    passages = tuple(f"p{at}" for at in range(len(grades)))
    return Ranking("q", passages, grades, tuple(LabelledPassage(f"m{at}", 1.0) for at in range(missed)))


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_by_hand() -> None:
    each, given_scores = ranking(0, 1, 0, 1), scores(4, 3, 2, 1)
    assert reciprocal_rank(each, given_scores) == 0.5
    assert average_precision(each, given_scores) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert recall(each, given_scores, depth=2) == 0.5
    wanted = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert ndcg(each, given_scores) == pytest.approx(wanted)


def test_what_was_missed_counts_in_every_denominator() -> None:
    each, given_scores = ranking(1, 0, missed=1), scores(2, 1)
    assert average_precision(each, given_scores) == 0.5
    assert recall(each, given_scores, depth=10) == 0.5
    assert ndcg(each, given_scores) == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert reciprocal_rank(each, given_scores) == 1.0


def test_a_list_without_candidates_reaches_nothing() -> None:
    found = {name: measure(ranking(missed=1), scores()) for name, measure in MEASURES.items()}
    assert found == dict.fromkeys(MEASURES, 0.0)


def test_of_equal_scores_the_earlier_comes_first() -> None:
    assert order_of(scores(1, 2, 2, 1)).tolist() == [1, 2, 0, 3]


def test_beyond_the_depth_there_is_nothing() -> None:
    each, falling = ranking(*[0] * 10, 1), -np.arange(11, dtype=np.float32)
    assert reciprocal_rank(each, falling) == 0.0
    assert ndcg(each, falling) == 0.0
    assert average_precision(each, falling) == pytest.approx(1 / 11)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 50)), min_size=2, max_size=25, unique_by=lambda x: x[1]))
def test_as_scikit_learn_measures(rows: list[tuple[int, int]]) -> None:
    grades, values = np.array([g for g, _ in rows], float), scores(*(s for _, s in rows))
    if not grades.any():
        return
    each = ranking(*grades)
    assert ndcg(each, values) == pytest.approx(ndcg_score([grades], [values], k=10))
    assert average_precision(each, values) == pytest.approx(average_precision_score(grades > 0, values))


def test_overlap_of_the_best() -> None:
    assert top_overlap(scores(3, 2, 1, 0), scores(3, 0, 1, 2), depth=1) == 1.0
    assert top_overlap(scores(3, 2, 1, 0), scores(3, 0, 1, 2), depth=3) == pytest.approx(2 / 3)
    assert top_overlap(scores(3, 2), scores(2, 3), depth=3) == 1.0


def test_agreement_leaves_out_lists_of_one() -> None:
    first, second = Scored("a", (scores(1), scores(1, 2))), Scored("b", (scores(5), scores(2, 1)))
    found = agreement(first, second)
    assert found is not None
    assert (found.queries, found.best) == (1, 0.0)
    assert agreement(Scored("a", (scores(1),)), Scored("b", (scores(1),))) is None


def test_rankers_are_compared_on_the_same_queries() -> None:
    lists = [ranking(1, 0, 0) for _ in range(20)] + [ranking(0, 0, 0)] * 5
    good, bad = scores(3, 2, 1), scores(1, 2, 3)
    teacher = Scored("teacher", (good,) * 25)
    student = Scored("int8", (*(good,) * 10, *(bad,) * 10, *(good,) * 5))
    base = Scored("given", (bad,) * 25)
    found = compare_rankers("test", lists, students=[student], teacher=teacher, baselines=[base])
    (ours,) = found.students
    assert (ours.queries, ours.answered) == (25, 20)
    assert ours.value("mrr@10") == pytest.approx((1 + 1 / 3) / 2)
    assert ours.agreement is not None
    assert ours.agreement.best == pytest.approx(15 / 25)
    assert ours.versus is not None
    kept = ours.versus["teacher"].ratio["mrr@10"]
    assert kept.value == pytest.approx(2 / 3)
    assert kept.low < kept.value < kept.high
    assert ours.versus["given"].difference["mrr@10"].low > 0
    assert found.baseline("given").value("mrr@10") == pytest.approx(1 / 3)
    assert found.teacher.agreement is None
    with pytest.raises(KeyError):
        found.baseline("bm25")


def test_one_query_has_a_point_for_an_interval() -> None:
    found = compare_rankers("t", [ranking(1, 0)], students=[], teacher=Scored("teacher", (scores(1, 2),)))
    interval = found.teacher.measures["mrr@10"]
    assert (interval.low, interval.value, interval.high) == (0.5, 0.5, 0.5)


def test_without_a_relevant_passage_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no query has a relevant passage"):
        compare_rankers("t", [ranking(0, 0)], students=[], teacher=Scored("teacher", (scores(1, 2),)))
