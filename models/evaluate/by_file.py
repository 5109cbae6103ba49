"""What a student reaches on each of several test files, beside its teacher. N rows, C labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from models.data.rows import Row, text_of
from models.evaluate import metrics
from models.evaluate.calibrate import gold_indices
from models.evaluate.exits import Counts, exit_taken
from models.evaluate.metrics import Interval
from models.evaluate.scores import exit_logits, exit_rows
from service.runtime.student import Student


@dataclass(frozen=True, slots=True)
class FileQuality:
    """One setting on the rows of one test file.

    setting: "teacher", "full depth" or "risk R". f1: of the last label where there are two, else the macro average.
    retention: accuracy ÷ the teacher's, f1_retention: the same of `f1`; None of the teacher itself.
    """

    file: str
    rows: int
    setting: str
    accuracy: float
    f1: float
    retention: Interval | None
    f1_retention: float | None


def by_file(student: Student, rows: Sequence[Row], teacher: Sequence[str]) -> tuple[FileQuality, ...]:
    """Measure full depth and the default operating point on each file of labelled rows.

    Args:
        teacher: the teacher's labels of the rows.
    """
    manifest = student.manifest
    logits = exit_logits(student, student.encoder.encode([text_of(row) for row in rows]))
    rule = manifest.certificate(backend=student.backend, precision=student.precision)
    seen = exit_rows(
        logits,
        temperatures=[leave.temperature for leave in manifest.exits],
        rule=rule.confidence if rule else "max_probability",
    )
    every = np.arange(len(rows))
    gold, theirs = (
        gold_indices(labels, manifest.labels) for labels in ([str(row.label) for row in rows], list(teacher))
    )
    answers = {"teacher": theirs, "full depth": seen.labels[:, -1]}
    if rule is not None and (risk := student.policy().risk_applied) is not None:
        point = next(each for each in rule.points if each.risk == risk)
        answers[f"risk {risk:g}"] = seen.labels[every, exit_taken(seen, point.thresholds)]
    files = [row.file for row in rows]
    return tuple(
        _quality(file, name, answered[places], theirs[places], gold[places], labels=len(manifest.labels))
        for file in dict.fromkeys(files)
        for places in [np.flatnonzero(np.array([each == file for each in files]))]
        for name, answered in answers.items()
    )


def _quality(file: str, setting: str, answered: Counts, teacher: Counts, gold: Counts, *, labels: int) -> FileQuality:
    path = Path(file).resolve()
    f1, reference = _f1(answered, gold, labels), _f1(teacher, gold, labels)
    is_student = setting != "teacher" and bool((teacher == gold).any())
    return FileQuality(
        file=f"{path.parent.name}/{path.name}",
        rows=len(gold),
        setting=setting,
        accuracy=metrics.accuracy(answered, gold),
        f1=f1,
        retention=metrics.retention(answered, teacher, gold) if is_student else None,
        f1_retention=f1 / reference if is_student and reference else None,
    )


def _f1(answered: Counts, gold: Counts, labels: int) -> float:
    if labels == 2:
        return float(f1_score(gold, answered, pos_label=1, zero_division=0.0))
    return metrics.macro_f1(answered, gold)
