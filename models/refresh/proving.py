"""From a draft bundle to one worth publishing: certificates, gates, and the one look at the test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.data.rows import Row, group_key
from models.evaluate.calibrate import (
    Promise,
    Temperatures,
    certify_student,
    gold_indices,
    keys_digest,
    temperatures_of,
)
from models.evaluate.company import check_company
from models.evaluate.exits import Risks
from models.evaluate.quality import EvaluationRows, StudentQuality, evaluate_student
from models.evaluate.resplits import ExitSettings, Resampling, ResplitSummary, resplits
from models.evaluate.scores import exit_logits
from models.evaluate.variants import Variant, variants
from models.recipe.classify import ClassifyRecipe
from models.refresh.training import texts_of
from models.report.card import GateResult
from service.bundle.load import Bundle, load_bundle
from service.bundle.manifest import Certificate

_GATE_LEVEL = 0.01
_RESPLITS = 300


@dataclass(frozen=True, slots=True)
class Certified:
    """The exits' temperatures, and one certificate per backend and precision; a student of one exit has none."""

    temperatures: Temperatures
    certificates: tuple[Certificate, ...]


def certify_draft(draft: Path, recipe: ClassifyRecipe, *, split_a: Sequence[Row], split_b: Sequence[Row]) -> Certified:
    """Temperatures from split A on the first backend; certificates from split B on every backend and precision.

    Args:
        draft: a bundle's folder without certificates.
        split_a: chooses the rule's shape.
        split_b: certifies it; used here and nowhere else.
    """
    bundle = load_bundle(draft)
    first = first_variant(recipe).load(bundle)
    gold = [int(index) for index in gold_indices([row.label for row in split_a], bundle.manifest.labels)]
    temperatures = temperatures_of(first, first.encoder.encode(texts_of(split_a)), gold=gold)
    if len(temperatures.exits) == 1:
        return Certified(temperatures, ())
    wanted = variants(recipe.exits.backends, recipe.publish.precisions)
    found = certificates_of(bundle, wanted, recipe, temperatures=temperatures.exits, splits=(split_a, split_b))
    return Certified(temperatures, found)


def certificates_of(
    bundle: Bundle,
    wanted: Sequence[Variant],
    recipe: ClassifyRecipe,
    *,
    temperatures: Sequence[float],
    splits: tuple[Sequence[Row], Sequence[Row]],
) -> tuple[Certificate, ...]:
    """One certificate for each variant, in the order given: its path chosen on split A, certified once on split B.

    Args:
        temperatures: one per exit, as the manifest carries them or will.
        splits: A and B; each variant's reference is its own full depth.
    """
    promise = promise_of(recipe, splits[1])
    encoder = wanted[0].load(bundle).encoder
    encoded_a, encoded_b = (encoder.encode(texts_of(rows)) for rows in splits)
    return tuple(
        certify_student(
            variant.load(bundle),
            split_a=encoded_a,
            split_b=encoded_b,
            temperatures=temperatures,
            promise=promise,
        )
        for variant in wanted
    )


def promise_of(recipe: ClassifyRecipe, split_b: Sequence[Row]) -> Promise:
    """What the recipe wants promised of these calibration rows' population."""
    return Promise(
        confidence=recipe.exits.confidence,
        risks=_risks(recipe),
        population=recipe.data.population or f"rows like those of the training data of {recipe.name}",
        population_digest=keys_digest([group_key(row) for row in split_b]),
        input_policy=f"{_shape(split_b)}, cut at the end to {recipe.student.max_tokens} tokens",
    )


def _shape(rows: Sequence[Row]) -> str:
    return "single texts" if rows[0].text_pair is None else "pairs of texts as one sequence"


def first_variant(recipe: ClassifyRecipe) -> Variant:
    """The recipe's first backend with the precision that is served by default."""
    return Variant(recipe.exits.backends[0], recipe.publish.default_precision)


def _risks(recipe: ClassifyRecipe) -> Risks:
    return Risks(recipe.exits.risks, recipe.exits.delta, favoured=recipe.exits.default_risk)


def rows_to_judge(rows: Sequence[Row], teacher: Sequence[str]) -> EvaluationRows:
    """Labelled rows with the teacher's answers beside them."""
    labels = tuple(row.label for row in rows if row.label is not None)
    return EvaluationRows(texts=tuple(texts_of(rows)), labels=labels, teacher=tuple(teacher))


def measure(bundle: Bundle, wanted: Sequence[Variant], rows: EvaluationRows) -> tuple[StudentQuality, ...]:
    """The quality of each variant on the rows, in the order given."""
    return tuple(evaluate_student(variant.load(bundle), rows) for variant in wanted)


def judge(bundle: Bundle, recipe: ClassifyRecipe, qualities: Sequence[StudentQuality]) -> tuple[GateResult, ...]:
    """Every gate, passed or not, from measurements on the gate split."""
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    gates = [
        GateResult("bytes", f"<= {recipe.gates.bytes:,}", f"{size:,}", size <= recipe.gates.bytes),
        *(_retention(quality, recipe) for quality in qualities),
        *(gate for quality in qualities for gate in judge_promises(quality)),
    ]
    return tuple(gates)


def judge_company(bundle: Bundle, wanted: Sequence[Variant], rows: Sequence[Row]) -> tuple[GateResult, ...]:
    """Whether answers depend on the batch or its padding, on the gate split."""
    found = []
    for variant in wanted:
        student = variant.load(bundle)
        checks = check_company(student, student.encoder.encode(texts_of(rows)))
        worst = max(check.worst_score for check in checks)
        holds = all(check.holds for check in checks)
        found.append(
            GateResult(f"company, {variant.name}", "same answer in any batch", f"scores within {worst:.1e}", holds)
        )
    return tuple(found)


def _retention(quality: StudentQuality, recipe: ClassifyRecipe) -> GateResult:
    kept = quality.full_depth.retention
    value = 0.0 if kept is None else kept.value
    reached = f"{value:.4f} on {quality.rows} rows"
    name = f"retention, full depth, {quality.name}"
    return GateResult(name, f">= {recipe.gates.retention:g}", reached, value >= recipe.gates.retention)


def judge_promises(quality: StudentQuality) -> list[GateResult]:
    """Each offered risk, by the exact test on rows that had no part in its certificate."""
    return [
        GateResult(
            f"risk {test.risk:g}, {quality.name}",
            f"not refuted at {_GATE_LEVEL:g}",
            f"{test.errors} of {test.rows} differ, p = {test.p_value:.3f}",
            test.p_value > _GATE_LEVEL,
        )
        for test in (setting.disagreement for setting in quality.settings)
        if test is not None
    ]


def draw_again(
    bundle: Bundle, recipe: ClassifyRecipe, *, split_a: Sequence[Row], split_b: Sequence[Row], test: Sequence[Row]
) -> tuple[ResplitSummary, ...]:
    """What the first backend's and default precision's exits give when A and B are drawn again from their rows."""
    if len(bundle.manifest.exits) == 1:
        return ()
    student = first_variant(recipe).load(bundle)
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
