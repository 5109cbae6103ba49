"""Standings are the measures that the other reports print, setting by setting, with intervals."""

import math

import numpy as np
import pytest

from models.data.rows import ScoredPair
from models.evaluate import metrics
from models.evaluate.embedding import correlation
from models.evaluate.metrics import Interval
from models.evaluate.quality import EvaluationRows, evaluate_student
from models.evaluate.ranking import RankQuality, Versus
from models.evaluate.standing import (
    answers_standing,
    classify_standings,
    rank_standing,
    resampled,
    vectors_standing,
)
from service.runtime.student import Student


@pytest.fixture
def rows(student: Student, texts: tuple[str, ...]) -> EvaluationRows:
    draw = np.random.default_rng(1)
    names = student.manifest.labels
    gold, teacher = (tuple(str(name) for name in draw.choice(names, size=len(texts))) for _ in range(2))
    return EvaluationRows(texts, gold, teacher)


def test_every_setting_is_what_evaluate_says(student: Student, rows: EvaluationRows) -> None:
    quality = evaluate_student(student, rows)
    found = classify_standings(student, rows)
    assert [each.risk for each in found] == [each.risk for each in quality.settings]
    assert [each.setting for each in found][:2] == ["full depth", "risk 0.01"]
    for standing, setting in zip(found, quality.settings, strict=True):
        assert standing.quality.value == pytest.approx(setting.accuracy)
        assert standing.macro_f1 is not None
        assert standing.macro_f1.value == pytest.approx(setting.macro_f1)
        assert standing.retention == setting.retention
        assert standing.quality.low < standing.quality.value < standing.quality.high
        assert standing.macro_f1.low < standing.macro_f1.value < standing.macro_f1.high


def test_without_a_teacher_there_is_no_retention(student: Student, rows: EvaluationRows) -> None:
    bare = EvaluationRows(rows.texts, rows.labels)
    assert {each.retention for each in classify_standings(student, bare)} == {None}


def test_answers_of_anything_are_judged(student: Student, rows: EvaluationRows) -> None:
    assert rows.labels is not None
    names = student.manifest.labels
    right = answers_standing(rows.labels, EvaluationRows(rows.texts, rows.labels), names=names)
    assert right.quality == Interval(1.0, 1.0, 1.0) == right.macro_f1
    one = EvaluationRows(rows.texts[:1], rows.labels[:1], rows.labels[:1])
    assert answers_standing(rows.labels[:1], one, names=names).retention is None


def test_macro_f1_is_that_of_scikit_learn_where_labels_are_missing() -> None:
    names = ("a", "b", "c", "d")
    gold, answers = ("a", "a", "b", "b", "c"), ("a", "b", "b", "d", "a")
    index = {name: at for at, name in enumerate(names)}
    found = answers_standing(answers, EvaluationRows(("",) * 5, gold), names=names).macro_f1
    expected = metrics.macro_f1(np.array([index[a] for a in answers]), np.array([index[g] for g in gold]))
    assert found is not None
    assert found.value == pytest.approx(expected)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_vectors_are_judged_by_the_scores_of_their_pairs() -> None:
    draw = np.random.default_rng(0)
    vectors = unit(draw.normal(size=(80, 6)))
    cosines = (vectors[:40].astype(np.float64) * vectors[40:]).sum(axis=1)
    pairs = [ScoredPair("a", "b", float(score)) for score in cosines + draw.normal(0, 0.2, 40)]
    found = vectors_standing(vectors, pairs, teacher=vectors)
    assert found.quality.value == pytest.approx(correlation(cosines, np.array([pair.score for pair in pairs])))
    assert found.quality.low < found.quality.value < found.quality.high
    assert found.retention == Interval(1.0, 1.0, 1.0)
    assert vectors_standing(vectors, pairs).retention is None


def test_vectors_that_are_all_the_same_have_no_correlation() -> None:
    same = np.ones((8, 2), np.float32)
    found = vectors_standing(same, [ScoredPair("a", "b", float(at)) for at in range(4)], teacher=same)
    assert math.isnan(found.quality.value)
    assert found.retention is not None
    assert math.isnan(found.retention.value)


def test_a_ranker_is_judged_by_ndcg() -> None:
    value, ratio = Interval(0.8, 0.7, 0.9), Interval(0.97, 0.95, 0.99)
    versus = {"teacher": Versus({"ndcg@10": ratio}, {})}
    quality = RankQuality("int8", 9, 8, {"ndcg@10": value, "map": Interval(0.1, 0, 1)}, versus=versus)
    assert rank_standing(quality, against="teacher").quality == value
    assert rank_standing(quality, against="teacher").retention == ratio
    assert rank_standing(quality, against=None).retention is None


def test_the_same_rows_give_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    first, second = (resampled(lambda places: float(values[places].mean()), 50) for _ in range(2))
    assert first == second
    assert first.value == pytest.approx(values.mean())
