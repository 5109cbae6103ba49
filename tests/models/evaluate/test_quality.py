"""What is measured agrees with counting by hand."""

import numpy as np
import pytest

from models.evaluate.quality import EvaluationRows, evaluate_student, layers_of, quality_for_manifest
from models.evaluate.scores import exit_logits, labels_of
from models.evaluate.tables import exits_table, quality_table, settings_table
from service.runtime.student import Student


@pytest.fixture
def rows(student: Student, texts: tuple[str, ...]) -> EvaluationRows:
    """Gold labels and teacher labels that are full depth's nine times in ten, each with its own errors."""
    full = labels_of(exit_logits(student, student.encoder.encode(texts)))[:, -1]
    draw = np.random.default_rng(1)
    names = student.manifest.labels
    gold = [names[int((label + (draw.random() < 0.1)) % 3)] for label in full]
    teacher = [names[int((label + (draw.random() < 0.1)) % 3)] for label in full]
    return EvaluationRows(texts=texts, labels=tuple(gold), teacher=tuple(teacher))


def test_every_exit_and_every_point_is_measured(student: Student, rows: EvaluationRows) -> None:
    quality = evaluate_student(student, rows)
    assert [leave.exit for leave in quality.exits] == ["early", "full"]
    assert [setting.risk for setting in quality.settings] == [None, 0.01, 0.05]
    assert quality.rows == 200
    assert quality.at(0.05) is quality.settings[2]
    assert quality.at(0.02) is None


def test_numbers_are_those_of_the_answers(student: Student, rows: EvaluationRows) -> None:
    quality = evaluate_student(student, rows)
    assert rows.labels is not None
    encoded = student.encoder.encode(rows.texts)
    outcomes = student.run(encoded, student.policy(0.05))
    answers = [student.manifest.labels[int(outcome.raw.argmax())] for outcome in outcomes]
    full = [student.manifest.labels[i] for i in exit_logits(student, encoded)[-1].argmax(axis=1)]
    setting = quality.settings[2]
    assert setting.accuracy == pytest.approx(np.mean([a == g for a, g in zip(answers, rows.labels, strict=True)]))
    assert setting.agreement == pytest.approx(np.mean([a == f for a, f in zip(answers, full, strict=True)]))
    assert setting.disagreement is not None
    assert setting.disagreement.errors == sum(a != f for a, f in zip(answers, full, strict=True))
    assert setting.exit_shares[0] == pytest.approx(np.mean([outcome.exit_index == 0 for outcome in outcomes]))
    assert setting.mean_depth == pytest.approx(0.25 * setting.exit_shares[0] + setting.exit_shares[1])


def test_full_depth_agrees_with_itself(student: Student, rows: EvaluationRows) -> None:
    full = evaluate_student(student, rows).full_depth
    assert full.agreement == 1.0
    assert full.exit_shares == (0.0, 1.0)
    assert full.disagreement is None
    assert full.bounds == ()
    assert full.retention is not None
    assert full.retention.low <= full.retention.value <= full.retention.high


def test_layers_are_given_or_those_of_the_recipe(student: Student, rows: EvaluationRows) -> None:
    quality = evaluate_student(student, rows, layers=(0, 4))
    assert quality.settings[1].mean_layers == pytest.approx(4 * quality.settings[1].exit_shares[1])
    assert [leave.layers for leave in quality.exits] == [0, 4]
    assert layers_of(student.manifest) is None
    recipe = {"student": {"exits": [0, 2]}}
    provenance = student.manifest.provenance.model_copy(update={"recipe": recipe})
    assert layers_of(student.manifest.model_copy(update={"provenance": provenance})) == (0, 2)


def test_a_cascades_first_exit_has_no_layers(student: Student) -> None:
    shape = {"architecture": "cascade", "encoder": {"exits": [2]}}
    provenance = student.manifest.provenance.model_copy(update={"recipe": {"student": shape}})
    assert layers_of(student.manifest.model_copy(update={"provenance": provenance})) == (0, 2)


def test_unlabelled_rows_are_measured_without_accuracy(student: Student, texts: tuple[str, ...]) -> None:
    quality = evaluate_student(student, EvaluationRows(texts))
    assert quality.full_depth.accuracy is None
    assert quality.full_depth.retention is None
    assert quality.teacher_accuracy is None
    assert quality.reliability == ()
    assert quality.exits[0].agreement < 1.0
    assert "–" in quality_table(quality)


def test_a_student_without_a_certificate_has_full_depth_only(student: Student, rows: EvaluationRows) -> None:
    uncertified = student.manifest.model_copy(update={"certificates": ()})
    bare = Student(student.bundle)
    bare.manifest = uncertified
    assert [setting.risk for setting in evaluate_student(bare, rows).settings] == [None]


def test_a_label_that_the_student_does_not_have_is_an_error(student: Student) -> None:
    with pytest.raises(KeyError):
        evaluate_student(student, EvaluationRows(("good film",), ("superb",)))


def test_no_rows_are_an_error(student: Student) -> None:
    with pytest.raises(ValueError, match="no rows"):
        evaluate_student(student, EvaluationRows(()))


def test_the_manifest_gets_the_short_form(student: Student, rows: EvaluationRows) -> None:
    quality = evaluate_student(student, rows)
    short = quality_for_manifest("test", [quality])
    assert (short.split, short.rows) == ("test", 200)
    assert short.teacher["accuracy"] == quality.teacher_accuracy
    assert [entry.risk for entry in short.by_precision["int8"]] == [None, 0.01, 0.05]
    assert short.by_precision["int8"][0].metrics["accuracy"] == quality.full_depth.accuracy
    bare = quality_for_manifest("test", [evaluate_student(student, EvaluationRows(rows.texts))])
    assert bare.teacher == {}
    assert set(bare.by_precision["int8"][0].metrics) == {"agreement_full_depth"}


def test_tables_have_a_line_for_each_exit_and_setting(student: Student, rows: EvaluationRows) -> None:
    quality = evaluate_student(student, rows)
    assert len(exits_table(quality).splitlines()) == 2 + 2
    assert len(settings_table(quality).splitlines()) == 2 + 3
    assert "int8 on onnxruntime: 200 rows" in quality_table(quality)
