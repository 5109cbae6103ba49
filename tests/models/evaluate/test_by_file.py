"""Each test file by itself: the numbers are those of the rows of that file alone, by the student as it answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from models.data.rows import Row, text_of
from models.evaluate.by_file import FileQuality, by_file
from service.bundle.load import load_bundle
from service.runtime.heads import ExitSetting
from service.runtime.student import Student

FILES = ("/data/one/test.jsonl", "/data/two/test.jsonl")
NAMES = ("one/test.jsonl", "two/test.jsonl")


def rows_of(student: Student, texts: Sequence[str], *, second: str | None = None) -> list[Row]:
    """Rows of both files in turns, their labels drawn."""
    draw = np.random.default_rng(3)
    labels = [str(label) for label in draw.choice(student.manifest.labels, size=len(texts))]
    return [
        Row(text, label, second, file=FILES[at % 3 == 0], line=at + 1)
        for at, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def teacher_of(student: Student, rows: Sequence[Row]) -> list[str]:
    """Right on three rows of four."""
    names = student.manifest.labels
    return [
        str(row.label) if at % 4 else names[(names.index(str(row.label)) + 1) % len(names)]
        for at, row in enumerate(rows)
    ]


def answers(student: Student, rows: Sequence[Row], exit: ExitSetting) -> np.ndarray:
    """Indices of the labels, each row answered alone."""
    policy = student.policy(exit)
    return np.array([student.run(student.encoder.encode([text_of(row)]), policy)[0].raw.argmax() for row in rows])


def named(found: Sequence[FileQuality]) -> dict[tuple[str, str], FileQuality]:
    return {(each.file, each.setting): each for each in found}


def loaded(build_bundle: Callable[..., Path], folder: Path, **fields: object) -> Student:
    return Student(load_bundle(build_bundle(folder / "bundle", **fields)))


def test_files_come_in_order_with_every_setting_and_no_path(student: Student, texts: tuple[str, ...]) -> None:
    rows = rows_of(student, texts)
    found = by_file(student, rows, teacher_of(student, rows))
    # the first row is of the second file
    settings = ("teacher", "full depth", "risk 0.05")
    assert [(each.file, each.setting) for each in found] == [(f, s) for f in reversed(NAMES) for s in settings]
    assert {each.file: each.rows for each in found} == {NAMES[0]: 133, NAMES[1]: 67}


@pytest.mark.parametrize(("setting", "exit"), [("full depth", "never"), ("risk 0.05", "default")])
def test_the_numbers_are_those_of_the_files_rows_alone(
    student: Student, texts: tuple[str, ...], setting: str, exit: ExitSetting
) -> None:
    rows = rows_of(student, texts)
    teacher = teacher_of(student, rows)
    found = named(by_file(student, rows, teacher))
    index = {name: at for at, name in enumerate(student.manifest.labels)}
    for file, name in zip(FILES, NAMES, strict=True):
        own = [at for at, row in enumerate(rows) if row.file == file]
        gold = np.array([index[str(rows[at].label)] for at in own])
        theirs = np.array([index[teacher[at]] for at in own])
        ours = answers(student, [rows[at] for at in own], exit)
        measured = found[name, setting]
        assert measured.accuracy == pytest.approx((ours == gold).mean())
        assert measured.f1 == pytest.approx(f1_score(gold, ours, average="macro"))
        assert measured.retention is not None
        assert measured.retention.value == pytest.approx((ours == gold).sum() / (theirs == gold).sum())
        assert measured.retention.low <= measured.retention.value <= measured.retention.high
        reference = f1_score(gold, theirs, average="macro")
        assert measured.f1_retention == pytest.approx(f1_score(gold, ours, average="macro") / reference)


def test_exits_answer_otherwise_than_full_depth(student: Student, texts: tuple[str, ...]) -> None:
    rows = rows_of(student, texts)
    assert (answers(student, rows, "never") != answers(student, rows, "default")).any()


def test_the_teacher_is_compared_with_nobody(student: Student, texts: tuple[str, ...]) -> None:
    rows = rows_of(student, texts)
    teacher = named(by_file(student, rows, teacher_of(student, rows)))[NAMES[0], "teacher"]
    own = [at for at, row in enumerate(rows) if row.file == FILES[0]]
    assert teacher.accuracy == pytest.approx(np.mean([at % 4 > 0 for at in own]))
    assert (teacher.retention, teacher.f1_retention) == (None, None)


def test_a_teacher_that_is_never_right_in_a_file_is_no_measure_there(student: Student, texts: tuple[str, ...]) -> None:
    rows = rows_of(student, texts)
    names = student.manifest.labels
    wrong = [names[(names.index(str(row.label)) + 1) % 3] if row.file == FILES[0] else str(row.label) for row in rows]
    found = named(by_file(student, rows, wrong))
    for setting in ("full depth", "risk 0.05"):
        assert (found[NAMES[0], setting].retention, found[NAMES[0], setting].f1_retention) == (None, None)
        assert found[NAMES[1], setting].retention is not None
    assert (found[NAMES[0], "teacher"].accuracy, found[NAMES[1], "teacher"].accuracy) == (0.0, 1.0)


def test_of_two_labels_f1_is_that_of_the_last(
    build_bundle: Callable[..., Path], tmp_path: Path, texts: tuple[str, ...]
) -> None:
    student = loaded(build_bundle, tmp_path, labels=("no", "yes"))
    rows = rows_of(student, texts)
    found = named(by_file(student, rows, teacher_of(student, rows)))[NAMES[0], "full depth"]
    own = [row for row in rows if row.file == FILES[0]]
    gold, ours = [row.label == "yes" for row in own], answers(student, own, "never") == 1
    assert found.f1 == pytest.approx(f1_score(gold, ours))
    assert found.f1 != pytest.approx(f1_score(gold, ours, average="macro"))


def test_a_file_without_the_last_label_has_no_share_of_f1(
    build_bundle: Callable[..., Path], tmp_path: Path, texts: tuple[str, ...]
) -> None:
    student = loaded(build_bundle, tmp_path, labels=("no", "yes"))
    rows = [Row(text, "no", file=FILES[0]) for text in texts]
    _, full, _ = by_file(student, rows, ["no"] * len(rows))
    assert full.f1 == 0.0
    assert full.f1_retention is None
    assert full.retention is not None


@pytest.mark.parametrize("fields", [{"certified": False, "default_risk": None}, {"default_risk": None}])
def test_without_a_default_point_there_is_full_depth_alone(
    build_bundle: Callable[..., Path], tmp_path: Path, texts: tuple[str, ...], fields: dict[str, object]
) -> None:
    student = loaded(build_bundle, tmp_path, **fields)
    rows = rows_of(student, texts)
    found = by_file(student, rows, teacher_of(student, rows))
    assert {each.setting for each in found} == {"teacher", "full depth"}


def test_pairs_are_read_as_pairs(build_bundle: Callable[..., Path], tmp_path: Path, texts: tuple[str, ...]) -> None:
    student = loaded(build_bundle, tmp_path, pairs="joint")
    rows = rows_of(student, texts, second="awful bad slow slow")
    found = named(by_file(student, rows, teacher_of(student, rows)))[NAMES[0], "full depth"]
    own = [row for row in rows if row.file == FILES[0]]
    gold = np.array([student.manifest.labels.index(str(row.label)) for row in own])
    assert found.accuracy == pytest.approx((answers(student, own, "never") == gold).mean())


def test_a_label_that_the_student_has_not_is_an_error(student: Student) -> None:
    with pytest.raises(KeyError, match="maybe"):
        by_file(student, [Row("good", "maybe", file=FILES[0])], ["positive"])
