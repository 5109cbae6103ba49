"""The refresh of a ranker: recipe → rankings → teacher → scores → student → draft → gates → test → card → publish."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from models.data.rank_sets import Ranking
from models.data.rankings import prepare_rankings, rank_sources
from models.errors import RecipeInvalid
from models.evaluate.rankers import (
    BI_ENCODER,
    bi_encoder_order,
    bm25_order,
    given_order,
    student_scores,
    teacher_scores,
)
from models.evaluate.ranking import RankComparison, RankQuality, Scored, compare_rankers
from models.evaluate.tables import percent
from models.export.bundle import finalise
from models.export.provenance import make_provenance
from models.recipe.rank import RankRecipe
from models.refresh.cache import StepCache
from models.refresh.drafted import Drafted
from models.refresh.gating import pass_gates
from models.refresh.progress import Reporter
from models.refresh.publishing import Published, publish, teacher_name
from models.refresh.rank_packing import RankDraft, make_rank_draft
from models.refresh.rank_training import (
    RankRun,
    check_start,
    cost_lines,
    first_teacher,
    make_ranker,
    make_ranking_teacher,
)
from models.report.card import GateResult
from models.report.rank_card import (
    RankCard,
    RankSeed,
    rank_quality_for_manifest,
    seed_results,
    write_rank_card,
)
from models.report.seeds import refresh_command
from models.teachers.teacher import MeanPooled, Teacher, load_teacher
from service.bundle.load import Bundle, load_bundle
from service.bundle.manifest import Provenance
from service.runtime.student import Student
from service.store.store import Store

GATES_STEP, SEED_STEP, VERSION_STEP = 1, 1, 2

_COMPANY_QUERIES = 12
_COMPANY_SHARE = 0.02


def start_rank(recipe: RankRecipe, cache: StepCache, reporter: Reporter) -> RankRun:
    """Read and cut the data, and say what training will cost.

    Raises: RecipeInvalid: a gate needs a baseline that the teacher cannot give; TeacherInvalid; and as
        `prepare_rankings` does.
    """
    run = RankRun(recipe, prepare_rankings(recipe), cache, reporter)
    splits = run.splits
    if BI_ENCODER in recipe.gates.beats and not isinstance(first_teacher(recipe).network, MeanPooled):
        raise RecipeInvalid("gates.beats: bi-encoder: the teacher is no bare encoder, and gives no embeddings")
    train = sum(len(each.answered) + len(each.unanswered) for each in splits.train)
    counts = {"dev": len(splits.dev), "calibration": len(splits.calibration), "gate": len(splits.gate)}
    counts |= {f"test {name}": len(rankings) for name, rankings in splits.tests.items()}
    said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    reporter.say(f"data: queries: train {train:,}, {said}")
    for note in splits.notes:
        reporter.say(f"data: {note}")
    return run


def check_rank(recipe: RankRecipe, cache: StepCache, reporter: Reporter) -> None:
    """Say what the data hold and what training would cost. Raises: as `start_rank` and `check_start` do."""
    run = start_rank(recipe, cache, reporter)
    check_start(recipe, first_teacher(recipe))
    for line in cost_lines(run):
        reporter.say(f"cost: {line}")


def refresh_rank(recipe: RankRecipe, *, store: Path, cache: StepCache, seeds: int = 1, reporter: Reporter) -> Published:
    """Make and publish a new version of a ranker.

    Args:
        seeds: how many seeds to train, from the recipe's on; the first is published, if it was not before, and the
            others go into its card.
    Raises:
        OfflineError: the recipe, data or teacher is wrong; GateFailed: a gate was not met. Nothing is published.
        StoreError: the version could not be published; the store is as it was.
    """
    run = start_rank(recipe, cache, reporter)
    teacher = make_ranking_teacher(run)
    draft = _draft(run, teacher)
    gates = _gates(run, teacher, draft)
    others = [recipe.model_copy(update={"seed": recipe.seed + more}) for more in range(1, seeds)]
    results = [each for other in others for each in _seed(RankRun(other, run.splits, cache, reporter), teacher)]
    return publish(recipe, _version(run, teacher, draft, gates, results), Store(store), reporter)


def rank_draft(run: RankRun) -> Drafted:
    """The student, held to no gate and published nowhere (cached steps). Raises: OfflineError."""
    teacher = make_ranking_teacher(run)
    return Drafted(_draft(run, teacher).bundle, teacher, teacher_name(run.recipe, teacher))


def _draft(run: RankRun, teacher: Teacher) -> RankDraft:
    draft = make_rank_draft(run, make_ranker(run, teacher), _provenance(run, teacher))
    for receipt in draft.receipts:
        run.reporter.say(f"compress: {receipt}")
    return draft


def _compared(
    run: RankRun, teacher: Teacher, bundle: Bundle, split: str, rankings: Sequence[Ranking]
) -> RankComparison:
    """Every precision of the student, the teacher and the baselines on one split."""
    with run.reporter.step(f"teacher on {split}") as progress:
        theirs = teacher_scores(teacher, rankings, directory=run.labels, progress=progress)
    students = [
        student_scores(Student(bundle, precision=each), rankings) for each in run.recipe.publish.default_first()
    ]
    return compare_rankers(split, rankings, students=students, teacher=theirs, baselines=_baselines(run, rankings))


def _baselines(run: RankRun, rankings: Sequence[Ranking]) -> tuple[Scored, ...]:
    bare = load_teacher(run.recipe.teacher.source, max_tokens=run.recipe.student.max_tokens)
    dense = (bi_encoder_order(bare, rankings),) if isinstance(bare.network, MeanPooled) else ()
    return (given_order(rankings), bm25_order(rankings), *dense)


def _gates(run: RankRun, teacher: Teacher, draft: RankDraft) -> tuple[GateResult, ...]:
    """Every gate, all passed (a cached step). Raises: GateFailed: naming those that were not."""
    inputs = {
        "step": GATES_STEP,
        "draft": draft.bundle.parent.name,
        "teacher": teacher.digest(),
        "gates": run.recipe.gates.model_dump(mode="json"),
        "rows": run.splits.digests["gate"],
    }

    return pass_gates(
        run.cache,
        run.reporter,
        lambda _: _judged(run, teacher, draft),
        name=run.recipe.name,
        step="rank-gates",
        inputs=inputs,
    )


def _judged(run: RankRun, teacher: Teacher, draft: RankDraft) -> tuple[GateResult, ...]:
    bundle, wanted = load_bundle(draft.bundle), run.recipe.gates
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    gates = [GateResult("bytes", f"<= {wanted.bytes:,}", f"{size:,}", size <= wanted.bytes)]
    found = _compared(run, teacher, bundle, "gate", run.splits.gate)
    for quality in found.students:
        gates += [_kept(quality, measure, wanted.retention) for measure in ("ndcg@10", "map")]
        gates += [_beats(quality, found.baseline(name)) for name in wanted.beats]
        gates.append(_company(Student(bundle, precision=quality.ranker), run.splits.gate[:_COMPANY_QUERIES]))
    return tuple(gates)


def _kept(quality: RankQuality, measure: str, required: float) -> GateResult:
    assert quality.versus is not None, "a student is always compared with its teacher"
    kept = quality.versus["teacher"].ratio[measure]
    reached = f"{kept.value:.4f} ({kept.low:.4f} to {kept.high:.4f}) on {quality.answered:,} queries"
    # subtle: written so that NaN fails
    return GateResult(f"retention of {measure}, {quality.ranker}", f">= {required:g}", reached, kept.value >= required)


def _beats(quality: RankQuality, baseline: RankQuality) -> GateResult:
    ours, theirs = quality.value("ndcg@10"), baseline.value("ndcg@10")
    required = f"above {baseline.ranker}'s {theirs:.4f}"
    return GateResult(f"ndcg@10, {quality.ranker}", required, f"{ours:.4f}", ours > theirs)


def _company(student: Student, rankings: Sequence[Ranking]) -> GateResult:
    """Whether a score depends on the batch or its padding, as a share of the scores' spread."""
    pairs = [pair for ranking in rankings for pair in ranking.pairs[:5]]
    encoded = student.encoder.encode(pairs)
    together = student.all_exits(encoded)[-1]
    alone = np.concatenate([student.all_exits([each])[-1] for each in encoded])
    worst = float(np.abs(together - alone).max() / max(float(together.std()), 1e-6))
    reached = f"{percent(worst)} of the scores' spread at most, {len(pairs):,} pairs"
    required = f"alone as in a batch within {percent(_COMPANY_SHARE)}"
    return GateResult(f"company, {student.precision}", required, reached, worst <= _COMPANY_SHARE)


def _on_tests(run: RankRun, teacher: Teacher, bundle: Bundle) -> tuple[RankComparison, ...]:
    """The one look at the tests."""
    return tuple(_compared(run, teacher, bundle, name, found) for name, found in run.splits.tests.items())


def _test_digests(run: RankRun) -> dict[str, str]:
    return {name: run.splits.digests[f"test {name}"] for name in run.splits.tests}


def _seed(run: RankRun, teacher: Teacher) -> tuple[RankSeed, ...]:
    """Another seed's student, made like the first and measured on the tests; never published."""
    draft = _draft(run, teacher)
    inputs = {"step": SEED_STEP, "draft": draft.bundle.parent.name, "tests": _test_digests(run)}

    def make(folder: Path) -> None:
        results = seed_results(run.recipe.seed, _on_tests(run, teacher, load_bundle(draft.bundle)))
        (folder / "results.json").write_text(json.dumps([asdict(each) for each in results]), encoding="utf-8")

    folder = run.cache.run("rank-seed", inputs, make)
    return tuple(RankSeed(**fields) for fields in json.loads((folder / "results.json").read_text(encoding="utf-8")))


def _version(
    run: RankRun, teacher: Teacher, draft: RankDraft, gates: tuple[GateResult, ...], others: Sequence[RankSeed]
) -> Path:
    """The finished bundle (a cached step)."""
    inputs = {
        "step": VERSION_STEP,
        "draft": draft.bundle.parent.name,
        "gates": [asdict(gate) for gate in gates],
        "seeds": [asdict(seed) for seed in others],
        "tests": _test_digests(run),
        "files": [source.sha256 for source in run.splits.sources],
        "recipe": run.recipe.digest(),
    }

    def make(folder: Path) -> None:
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        shutil.copytree(draft.bundle, folder / "bundle")
        # subtle: the draft's own may be of an earlier recipe with the same student
        bundle = finalise(folder / "bundle", provenance=_provenance(run, teacher))
        tests = _on_tests(run, teacher, bundle)
        seeds = (*seed_results(run.recipe.seed, tests), *others)
        write_rank_card(_card(run, teacher, draft, bundle, gates, tests, seeds), folder / "card")
        finalise(folder / "bundle", quality=rank_quality_for_manifest(tests), card_dir=folder / "card")

    return run.cache.run("rank-version", inputs, make) / "bundle"


def _card(
    run: RankRun,
    teacher: Teacher,
    draft: RankDraft,
    bundle: Bundle,
    gates: tuple[GateResult, ...],
    tests: tuple[RankComparison, ...],
    seeds: tuple[RankSeed, ...],
) -> RankCard:
    return RankCard(
        manifest=bundle.manifest,
        tests=tests,
        teacher_bytes=sum(tensor.numel() * tensor.element_size() for tensor in teacher.encoder_state().values()),
        gates=gates,
        data_notes=run.splits.notes,
        receipts=draft.receipts,
        commands=(refresh_command(run.recipe.name, seeds=len({each.seed for each in seeds})),),
        seeds=seeds,
        costs=tuple(receipt.line() for receipt in run.cache.receipts),
    )


def _provenance(run: RankRun, teacher: Teacher) -> Provenance:
    recipe = run.recipe
    return make_provenance(
        "refresh",
        teacher=teacher_name(recipe, teacher),
        recipe_sha256=recipe.digest(),
        recipe=recipe.written,
        data=(*run.splits.sources, *rank_sources(run.splits)),
        notes=recipe.notes,
    )
