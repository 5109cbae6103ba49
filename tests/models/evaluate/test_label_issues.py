"""Label issues: planted wrong labels are found, rare labels are left alone, and folds keep families together."""

import random

import numpy as np
import pytest

from models.data.rows import Row, group_key
from models.evaluate.label_issues import NOT_JUDGED, deal, label_issues, to_drop

FILLERS = "card money sent where is my the late again good bad film wait failed today please help".split()  # noqa: SIM905
WORDS = {"lost": ["lost", "missing"], "refund": ["refund", "back"], "transfer": ["transfer", "wire"]}
LABELS = sorted(WORDS)


def made(count: int, *, seed: int = 0) -> list[Row]:
    """Rows that one or two words decide."""
    chance = random.Random(seed)
    rows = []
    for at in range(count):
        label = LABELS[at % 3]
        text = " ".join([*chance.sample(FILLERS, 4), *WORDS[label], f"n{at}"])
        rows.append(Row(text, label, file="train.jsonl", line=at + 1))
    return rows


def relabelled(rows: list[Row], lines: set[int]) -> list[Row]:
    """The rows, those of these lines with the next label."""
    following = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    return [
        Row(row.text, following[str(row.label)] if row.line in lines else row.label, file=row.file, line=row.line)
        for row in rows
    ]


PLANTED = {10, 47, 95, 121}


def test_planted_labels_are_found_and_named():
    rows = relabelled(made(150), PLANTED)
    found = label_issues(rows, LABELS, folds=5, family=group_key)
    assert {issue.row.line for issue in found.issues} == PLANTED
    assert {issue.row.line: issue.suggested for issue in found.issues} == {
        line: LABELS[(line - 1) % 3] for line in PLANTED
    }
    probabilities = [issue.given_probability for issue in found.issues]
    assert probabilities == sorted(probabilities)
    assert all(issue.suggested_probability > issue.given_probability for issue in found.issues)
    assert (found.judged, found.rare) == (150, ())


def test_right_labels_are_left_alone():
    assert label_issues(made(150), LABELS, folds=5, family=group_key).issues == ()


def test_the_order_of_the_rows_does_not_matter():
    rows = relabelled(made(150), PLANTED)
    found = [label_issues(each, LABELS, folds=5, family=group_key) for each in (rows, rows[::-1])]
    assert [issue.row.line for issue in found[0].issues] == [issue.row.line for issue in found[1].issues]


def test_a_label_of_two_rows_is_not_judged_and_breaks_nothing():
    rare = [Row(f"pin {word}", "pin", file="train.jsonl", line=900 + at) for at, word in enumerate(("card", "lost"))]
    rows = [*relabelled(made(150), PLANTED), *rare]
    found = label_issues(rows, sorted([*LABELS, "pin"]), folds=5, family=group_key)
    assert {issue.row.line for issue in found.issues} == PLANTED
    assert (found.judged, found.rare) == (150, ("pin",))


def test_rare_labels_alone_are_not_judged():
    rows = made(6)
    found = label_issues(rows, LABELS, folds=5, family=group_key)
    assert (found.issues, found.judged, found.rare) == ((), 0, tuple(LABELS))


def test_texts_without_a_common_word_have_no_issues():
    rows = [Row(f"w{at}", LABELS[at % 2], file="f", line=at) for at in range(20)]
    assert label_issues(rows, LABELS[:2], folds=2, family=group_key).issues == ()


def test_pairs_are_judged_by_both_texts():
    rows = [Row("who knows", row.label, row.text, row.file, row.line) for row in relabelled(made(150), PLANTED)]
    found = label_issues(rows, LABELS, folds=5, family=group_key)
    lines = {issue.row.line for issue in found.issues}
    assert lines
    assert lines <= PLANTED


def test_families_stay_in_one_fold_and_every_fold_has_every_label():
    rows = [*made(60), *(Row(f"{row.text}!", row.label) for row in made(60))]
    folds = deal(rows, folds=4, family=group_key)
    np.testing.assert_array_equal(folds[:60], folds[60:])
    for label in LABELS:
        counts = np.bincount([fold for fold, row in zip(folds, rows, strict=True) if row.label == label], minlength=4)
        assert counts.tolist() == [10, 10, 10, 10]


def test_rows_of_a_rare_label_are_in_no_fold():
    rows = [*made(60), Row("pin", "pin"), Row("PIN!", "pin"), Row("pin two", "pin")]
    folds = deal(rows, folds=3, family=group_key)
    assert set(folds[60:].tolist()) == {NOT_JUDGED}
    assert set(folds[:60].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("least", "dropped"), [(2, {1, 2}), (3, {1}), (9, set())])
def test_every_label_keeps_its_least(least: int, dropped: set[int]):
    rows = [Row(f"t{at}", "a", file="f", line=at) for at in range(4)]
    doubtful = [rows[1], rows[2], rows[3]]
    assert to_drop(doubtful, rows, least=least) == {("f", line) for line in dropped}
