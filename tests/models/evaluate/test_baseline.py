"""The baseline: it learns what one word decides, and says what it reaches."""

import pytest

from models.evaluate.baseline import NAME, baseline_quality, tfidf_answers, tfidf_probabilities
from models.evaluate.quality import EvaluationRows

TEXTS = ["the card is lost", "a lost card", "refund the money", "money refund now"]
LABELS = ["lost", "lost", "refund", "refund"]


def test_it_learns_what_a_word_decides():
    answers = tfidf_answers(TEXTS, LABELS, [["lost again"], ["a refund", "my lost money card"]])
    assert answers[0] == ("lost",)
    assert answers[1][0] == "refund"


def test_without_a_word_in_two_texts_it_answers_the_most_frequent_label():
    assert tfidf_answers(["one", "two", "three"], ["b", "a", "b"], [["one", "four"], []]) == (("b", "b"), ())


def test_probabilities_stand_in_the_order_of_the_names():
    found = tfidf_probabilities(TEXTS, LABELS, ["lost again", "a refund"], names=("refund", "never", "lost"))
    assert found.shape == (2, 3)
    assert found.sum(axis=1) == pytest.approx([1, 1])
    assert found[:, 1].tolist() == [0, 0]
    assert found.argmax(axis=1).tolist() == [2, 0]


def test_without_a_word_in_two_texts_the_labels_shares_are_the_probabilities():
    found = tfidf_probabilities(
        ["one", "two", "three", "four"], ["b", "a", "b", "b"], ["one", "five"], names=("a", "b")
    )
    assert found.tolist() == [[0.25, 0.75], [0.25, 0.75]]


def test_it_is_judged_beside_the_teacher():
    rows = EvaluationRows(("1", "2", "3", "4"), labels=("a", "b", "a", "b"), teacher=("a", "b", "a", "a"))
    found = baseline_quality(("a", "b", "b", "b"), rows, names=("a", "b"))
    assert (found.name, found.rows, found.accuracy, found.teacher_agreement) == (NAME, 4, 0.75, 0.5)
    assert found.retention is not None
    assert found.retention.value == pytest.approx(1.0)


def test_a_teacher_that_is_never_right_gives_no_retention():
    rows = EvaluationRows(("1", "2"), labels=("a", "b"), teacher=("b", "a"))
    assert baseline_quality(("a", "b"), rows, names=("a", "b")).retention is None


def test_rows_without_a_teacher_are_refused():
    with pytest.raises(ValueError, match="teacher"):
        baseline_quality(("a",), EvaluationRows(("1",), labels=("a",)), names=("a", "b"))
