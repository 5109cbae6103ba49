"""From a draft bundle to one worth publishing: certificates, gates, and the one look at the test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.data.rows import Row, group_key
from models.evaluate.calibrate import Promise, certify_student, gold_indices, keys_digest, temperatures_of
from models.evaluate.company import check_company
from models.evaluate.exits import Risks
from models.evaluate.quality import EvaluationRows, StudentQuality, evaluate_student
from models.evaluate.resplits import ExitSettings, Resampling, ResplitSummary, resplits
from models.evaluate.scores import exit_logits
from models.recipe import Recipe
from models.refresh.training import texts_of
from models.report.card import GateResult
from service.bundle.load import Bundle, load_bundle
from service.bundle.manifest import Certificate
from service.runtime.student import Student

_GATE_LEVEL = 0.01
_RESPLITS = 300


@dataclass(frozen=True, slots=True)
class Certified:
    """One temperature per exit, and one certificate per precision."""

    temperatures: tuple[float, ...]
    certificates: tuple[Certificate, ...]


def certify_draft(draft: Path, recipe: Recipe, *, split_a: Sequence[Row], split_b: Sequence[Row]) -> Certified:
    """Temperatures from split A on the default precision; certificates from split B on every precision.

    Args:
        draft: a bundle's folder without certificates.
        split_a: chooses the rule's shape.
        split_b: certifies it; used here and nowhere else.
    """
    bundle = load_bundle(draft)
    promise = Promise(
        confidence=recipe.exits.confidence,
        risks=_risks(recipe),
        population=recipe.data.population or f"rows like those of the training data of {recipe.name}",
        population_digest=keys_digest([group_key(row) for row in split_b]),
        input_policy=f"single texts, cut at the end to {recipe.student.max_tokens} tokens",
    )
    first = Student(bundle, precision=recipe.publish.default_precision)
    encoded_a, encoded_b = (first.encoder.encode(texts_of(rows)) for rows in (split_a, split_b))
    gold = [int(index) for index in gold_indices([row.label for row in split_a], bundle.manifest.labels)]
    temperatures = temperatures_of(first, encoded_a, gold=gold)
    certificates = tuple(
        certify_student(
            Student(bundle, precision=precision),
            split_a=encoded_a,
            split_b=encoded_b,
            temperatures=temperatures,
            promise=promise,
        )
        for precision in recipe.publish.precisions
    )
    return Certified(temperatures, certificates)


def _risks(recipe: Recipe) -> Risks:
    return Risks(recipe.exits.risks, recipe.exits.delta, favoured=recipe.exits.default_risk)


def rows_to_judge(rows: Sequence[Row], teacher: Sequence[str]) -> EvaluationRows:
    """Labelled rows with the teacher's answers beside them."""
    labels = tuple(row.label for row in rows if row.label is not None)
    return EvaluationRows(texts=tuple(texts_of(rows)), labels=labels, teacher=tuple(teacher))


def measure(bundle: Bundle, precisions: Sequence[str], rows: EvaluationRows) -> tuple[StudentQuality, ...]:
    """The quality of each precision on the rows, in the order given."""
    return tuple(evaluate_student(Student(bundle, precision=precision), rows) for precision in precisions)


def judge(bundle: Bundle, recipe: Recipe, qualities: Sequence[StudentQuality]) -> tuple[GateResult, ...]:
    """Every gate, passed or not, from measurements on the gate split."""
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    gates = [
        GateResult("bytes", f"<= {recipe.gates.bytes:,}", f"{size:,}", size <= recipe.gates.bytes),
        *(_retention(quality, recipe) for quality in qualities),
        *(gate for quality in qualities for gate in _promises(quality)),
    ]
    return tuple(gates)


def judge_company(bundle: Bundle, precisions: Sequence[str], rows: Sequence[Row]) -> tuple[GateResult, ...]:
    """Whether answers depend on the batch or its padding, on the gate split."""
    found = []
    for precision in precisions:
        student = Student(bundle, precision=precision)
        checks = check_company(student, student.encoder.encode(texts_of(rows)))
        worst = max(check.worst_score for check in checks)
        holds = all(check.holds for check in checks)
        found.append(
            GateResult(f"company, {precision}", "same answer in any batch", f"scores within {worst:.1e}", holds)
        )
    return tuple(found)


def _retention(quality: StudentQuality, recipe: Recipe) -> GateResult:
    kept = quality.full_depth.retention
    value = 0.0 if kept is None else kept.value
    reached = f"{value:.4f} on {quality.rows} rows"
    name = f"retention, full depth, {quality.precision}"
    return GateResult(name, f">= {recipe.gates.retention:g}", reached, value >= recipe.gates.retention)


def _promises(quality: StudentQuality) -> list[GateResult]:
    """Each offered risk, by the exact test on rows that had no part in its certificate."""
    return [
        GateResult(
            f"risk {test.risk:g}, {quality.precision}",
            f"not refuted at {_GATE_LEVEL:g}",
            f"{test.errors} of {test.rows} differ, p = {test.p_value:.3f}",
            test.p_value > _GATE_LEVEL,
        )
        for test in (setting.disagreement for setting in quality.settings)
        if test is not None
    ]


def draw_again(
    bundle: Bundle, recipe: Recipe, *, split_a: Sequence[Row], split_b: Sequence[Row], test: Sequence[Row]
) -> tuple[ResplitSummary, ...]:
    """What the exits of the default precision give when A and B are drawn again from the rows that had those roles."""
    student = Student(bundle, precision=recipe.publish.default_precision)
    pool, on_test = (
        exit_logits(student, student.encoder.encode(texts_of(rows))) for rows in ([*split_a, *split_b], test)
    )
    settings = ExitSettings(
        depths=tuple(leave.depth for leave in bundle.manifest.exits),
        risks=_risks(recipe),
        confidence=recipe.exits.confidence,
        layers=recipe.student.exits,
    )
    drawn = Resampling(rows_a=len(split_a), rows_b=len(split_b), runs=_RESPLITS)
    return resplits(pool, on_test, settings=settings, resampling=drawn)
