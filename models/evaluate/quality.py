"""What a student reaches on labelled rows: at each exit, at each operating point, and at full depth.

N rows, E exits (the last is full depth), C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.evaluate import metrics
from models.evaluate.calibrate import gold_indices
from models.evaluate.exits import Counts, Floats, LabelBound, exit_taken, label_bounds
from models.evaluate.metrics import DisagreementTest, Interval, ReliabilityBin
from models.evaluate.scores import Logits, exit_logits, exit_rows
from models.evaluate.variants import Variant
from service.bundle.manifest import ExitShares, Manifest, Quality
from service.runtime.encode import Text
from service.runtime.heads import softmax
from service.runtime.student import Student


@dataclass(frozen=True, slots=True)
class EvaluationRows:
    """Rows to measure on.

    labels: the gold labels; None: unlabelled rows, then only agreement and exits are measured.
    teacher: the teacher's labels on the same rows, where they are known.
    """

    texts: tuple[Text, ...]
    labels: tuple[str, ...] | None = None
    teacher: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ExitQuality:
    """One exit, if everybody left there.

    layers: attention layers run up to here, where known. agreement: with full depth. The calibration errors are
    those of the score as a probability of being right, without a temperature and with that of the exit's scores.
    """

    exit: str
    depth: float
    layers: int | None
    temperature: float
    score_temperature: float
    agreement: float
    accuracy: float | None
    macro_f1: float | None
    calibration_error_raw: float | None
    calibration_error: float | None


@dataclass(frozen=True, slots=True)
class SettingQuality:
    """One setting of the exits: an operating point, or full depth (`risk` None).

    disagreement: rows whose label is not full depth's, with the exact test of the promise; None at full depth.
    retention: accuracy ÷ the teacher's, with its interval; None without labels or teacher.
    bounds: by predicted label, where rows allow.
    """

    risk: float | None
    thresholds: tuple[float | None, ...]
    exit_shares: tuple[float, ...]
    mean_depth: float
    mean_layers: float | None
    agreement: float
    disagreement: DisagreementTest | None
    accuracy: float | None
    macro_f1: float | None
    calibration_error: float | None
    teacher_agreement: float | None
    retention: Interval | None
    bounds: tuple[LabelBound, ...]


@dataclass(frozen=True, slots=True)
class StudentQuality:
    """Everything measured for one backend and precision.

    settings: full depth first, then the operating points, risks rising.
    """

    student: str
    backend: str
    precision: str
    rows: int
    teacher_accuracy: float | None
    teacher_macro_f1: float | None
    exits: tuple[ExitQuality, ...]
    settings: tuple[SettingQuality, ...]
    reliability: tuple[ReliabilityBin, ...]

    @property
    def name(self) -> str:
        """The precision; and the backend, where it is not the first."""
        return Variant(self.backend, self.precision).name

    @property
    def full_depth(self) -> SettingQuality:
        """The setting in which nobody leaves early."""
        return self.settings[0]

    def at(self, risk: float) -> SettingQuality | None:
        """The operating point of exactly this risk, or None where it is not offered."""
        return next((setting for setting in self.settings if setting.risk == risk), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Labels by index: of every exit [N, E], gold [N] and teacher [N]; the scores as shown [N, E]."""

    manifest: Manifest
    layers: tuple[int, ...] | None
    labels: Counts
    scores: Floats
    gold: Counts | None
    teacher: Counts | None


def evaluate_student(student: Student, rows: EvaluationRows, *, layers: Sequence[int] | None = None) -> StudentQuality:
    """Measure a classify student on the backend and in the precision it is loaded in.

    Args:
        layers: attention layers run up to each exit; None: as the manifest's recipe says, if it does.
    Raises:
        ValueError: no rows. KeyError: a gold label that the student does not have.
    """
    manifest = student.manifest
    logits = exit_logits(student, student.encoder.encode(rows.texts))
    temperatures = [leave.temperature for leave in manifest.exits]
    certificate = manifest.certificate(backend=student.backend, precision=student.precision)
    seen = exit_rows(
        logits, temperatures=temperatures, rule=certificate.confidence if certificate else "max_probability"
    )
    measured = _Measured(
        manifest=manifest,
        layers=layers_of(manifest) if layers is None else tuple(layers),
        labels=seen.labels,
        scores=np.stack(
            [_top(each, leave.answer_temperature) for each, leave in zip(logits, manifest.exits, strict=True)], axis=1
        ),
        gold=None if rows.labels is None else gold_indices(rows.labels, manifest.labels),
        teacher=None if rows.teacher is None else gold_indices(rows.teacher, manifest.labels),
    )
    never: tuple[float | None, ...] = (None,) * (len(manifest.exits) - 1)
    points = [(None, never), *((p.risk, p.thresholds) for p in (certificate.points if certificate else ()))]
    return StudentQuality(
        student=manifest.name,
        backend=student.backend,
        precision=student.precision,
        rows=len(rows.texts),
        teacher_accuracy=_with_gold(metrics.accuracy, measured.teacher, measured.gold),
        teacher_macro_f1=_with_gold(metrics.macro_f1, measured.teacher, measured.gold),
        exits=tuple(_exit_quality(measured, i, logits[i]) for i in range(len(manifest.exits))),
        settings=tuple(
            _setting(measured, risk, thresholds, exit_taken(seen, thresholds)) for risk, thresholds in points
        ),
        reliability=_reliability(measured),
    )


def layers_of(manifest: Manifest) -> tuple[int, ...] | None:
    """Attention layers run up to each exit, as the recipe in the manifest says; None where it does not."""
    student = manifest.provenance.recipe.get("student")
    student = student if isinstance(student, dict) else {}
    exits = student.get("exits")
    if student.get("architecture") == "siamese":
        exits = [student["layers"]] if isinstance(student.get("layers"), int) else None
    if student.get("architecture") == "cascade":
        inner = (student.get("encoder") or {}).get("exits")
        exits = [0, *inner] if isinstance(inner, list | tuple) else None
    return (
        tuple(int(n) for n in exits) if isinstance(exits, list | tuple) and len(exits) == len(manifest.exits) else None
    )


def quality_for_manifest(split: str, measured: Sequence[StudentQuality]) -> Quality:
    """The manifest's short form of the measurements, one entry per precision and further backend."""
    first = measured[0]
    teacher = {"accuracy": first.teacher_accuracy, "macro_f1": first.teacher_macro_f1}
    return Quality(
        split=split,
        rows=first.rows,
        teacher={name: value for name, value in teacher.items() if value is not None},
        by_precision={each.name: tuple(_short(setting) for setting in each.settings) for each in measured},
    )


def _short(setting: SettingQuality) -> ExitShares:
    found = {
        "accuracy": setting.accuracy,
        "macro_f1": setting.macro_f1,
        "agreement_full_depth": setting.agreement,
        "agreement_teacher": setting.teacher_agreement,
        "retention": setting.retention.value if setting.retention else None,
    }
    return ExitShares(
        risk=setting.risk,
        exit_shares=setting.exit_shares,
        mean_depth=setting.mean_depth,
        metrics={name: value for name, value in found.items() if value is not None},
    )


def _top(logits: Logits, temperature: float) -> Floats:
    return np.asarray(softmax(logits, temperature=temperature).max(axis=1))


def _with_gold(measure: metrics.Measure, predicted: Counts | None, gold: Counts | None) -> float | None:
    return None if predicted is None or gold is None else measure(predicted, gold)


def _exit_quality(measured: _Measured, index: int, logits: Logits) -> ExitQuality:
    leave, predicted, gold = measured.manifest.exits[index], measured.labels[:, index], measured.gold
    right = None if gold is None else predicted == gold
    return ExitQuality(
        exit=leave.id,
        depth=leave.depth,
        layers=None if measured.layers is None else measured.layers[index],
        temperature=leave.temperature,
        score_temperature=leave.answer_temperature,
        agreement=metrics.agreement(predicted, measured.labels[:, -1]),
        accuracy=_with_gold(metrics.accuracy, predicted, gold),
        macro_f1=_with_gold(metrics.macro_f1, predicted, gold),
        calibration_error_raw=None if right is None else metrics.calibration_error(_top(logits, 1.0), right),
        calibration_error=None if right is None else metrics.calibration_error(measured.scores[:, index], right),
    )


def _setting(
    measured: _Measured, risk: float | None, thresholds: tuple[float | None, ...], taken: Counts
) -> SettingQuality:
    exits, layers = measured.manifest.exits, measured.layers
    every = np.arange(len(taken))
    answered, reference = measured.labels[every, taken], measured.labels[:, -1]
    gold, teacher = measured.gold, measured.teacher
    shares = np.bincount(taken, minlength=len(exits)) / len(taken)
    errors = int((answered != reference).sum())
    score = measured.scores[every, taken]
    return SettingQuality(
        risk=risk,
        thresholds=thresholds,
        exit_shares=tuple(float(share) for share in shares),
        mean_depth=min(1.0, float(shares @ [leave.depth for leave in exits])),
        mean_layers=None if layers is None else float(shares @ np.asarray(layers)),
        agreement=metrics.agreement(answered, reference),
        disagreement=None if risk is None else metrics.exact_test(errors, len(taken), risk=risk),
        accuracy=_with_gold(metrics.accuracy, answered, gold),
        macro_f1=_with_gold(metrics.macro_f1, answered, gold),
        calibration_error=None if gold is None else metrics.calibration_error(score, answered == gold),
        teacher_agreement=_with_gold(metrics.agreement, answered, teacher),
        retention=_retention(answered, teacher, gold),
        bounds=() if risk is None else label_bounds(answered, reference, labels=measured.manifest.labels),
    )


def _retention(answered: Counts, teacher: Counts | None, gold: Counts | None) -> Interval | None:
    if teacher is None or gold is None or len(gold) < 2 or not (teacher == gold).any():
        return None
    return metrics.retention(answered, teacher, gold)


def _reliability(measured: _Measured) -> tuple[ReliabilityBin, ...]:
    """Of full depth, against the gold labels."""
    if measured.gold is None:
        return ()
    return metrics.reliability(measured.scores[:, -1], measured.labels[:, -1] == measured.gold)
