"""The refresh: recipe → data → teacher → student → draft → certificates → gates → test → card → publish."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from models.data.cuts import Splits, prepare, split_sources
from models.errors import RecipeInvalid
from models.evaluate.by_file import FileQuality, by_file
from models.evaluate.calibrate import Temperatures
from models.evaluate.quality import StudentQuality, quality_for_manifest
from models.evaluate.speed import Timing, frontier, pinned
from models.evaluate.variants import Variant, backend_libraries, require_backends, variants
from models.export.bundle import finalise
from models.export.provenance import make_provenance
from models.recipe.classify import ClassifyRecipe
from models.recipe.parts import FIRST_BACKEND
from models.refresh.baseline import baseline_on
from models.refresh.cache import StepCache
from models.refresh.drafted import Drafted
from models.refresh.gating import pass_gates
from models.refresh.label_checks import check_labels
from models.refresh.packing import Draft, Transfer, make_draft
from models.refresh.progress import Reporter
from models.refresh.proving import (
    Certified,
    certify_draft,
    draw_again,
    first_variant,
    judge,
    judge_company,
    measure,
    rows_to_judge,
)
from models.refresh.pruning import make_pruned
from models.refresh.publishing import Published, publish, teacher_name
from models.refresh.training import (
    Run,
    check_shape,
    check_start,
    make_student,
    make_teacher,
    make_transfer_texts,
    takes_pairs,
    teacher_labels,
    texts_of,
)
from models.report.card import Card, GateResult, write_card
from models.report.seeds import SeedResult, refresh_command, seed_result
from models.teachers.teacher import Teacher, neighbours
from models.teachers.tokens import Text
from service.bundle.load import Bundle, load_bundle
from service.bundle.manifest import Certificate, Provenance
from service.store.store import Store

CERTIFY_STEP, DRAFTED_STEP, GATES_STEP, SEED_STEP, VERSION_STEP = 2, 1, 1, 1, 2


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One seed's student: its draft, and what was certified on it."""

    draft: Draft
    certified: Certified

    def inputs(self) -> dict[str, object]:
        """What tells this candidate from any other, JSON-able."""
        return {
            "draft": self.draft.bundle.parent.name,
            "temperatures": asdict(self.certified.temperatures),
            "certified": [certificate.model_dump(mode="json") for certificate in self.certified.certificates],
        }


def refresh(recipe: ClassifyRecipe, *, store: Path, cache: StepCache, seeds: int = 1, reporter: Reporter) -> Published:
    """Make and publish a new version.

    Args:
        recipe: what to make.
        store: the store to publish into.
        cache: where steps keep what they made.
        seeds: how many seeds to train, from the recipe's on; the first is published, if it was not before, and the
            others go into its card.
        reporter: told what happens.
    Raises:
        OfflineError: the recipe, data or teacher is wrong; GateFailed: a gate was not met. Nothing is published.
        StoreError: the version could not be published; the store is as it was.
    """
    run = start(recipe, cache, reporter)
    teacher = make_teacher(run)
    _tell_teacher(run, teacher)
    texts, gold = make_transfer_texts(run, teacher, neighbours)
    transfer = Transfer(texts, gold)
    candidate = _candidate(run, teacher, transfer)
    gates = _gates(run, teacher, candidate)
    others = [recipe.model_copy(update={"seed": recipe.seed + more}) for more in range(1, seeds)]
    results = [_seed(Run(other, run.splits, cache, reporter), teacher, transfer) for other in others]
    bundle = _version(run, teacher, candidate, gates, results)
    return publish(recipe, bundle, Store(store), reporter)


def certified_draft(run: Run) -> Drafted:
    """The student with its certificates, held to no gate and published nowhere (cached steps). Raises: OfflineError."""
    teacher = make_teacher(run)
    texts, gold = make_transfer_texts(run, teacher, neighbours)
    candidate = _candidate(run, teacher, Transfer(texts, gold))
    inputs = {"step": DRAFTED_STEP, **candidate.inputs(), "recipe": run.recipe.digest()}
    folder = run.cache.run("drafted", inputs, lambda made: _copy_to(run, teacher, candidate, made))
    return Drafted(folder / "bundle", teacher, teacher_name(run.recipe, teacher))


def _copy_to(run: Run, teacher: Teacher, candidate: _Candidate, folder: Path) -> None:
    _assembled(run, teacher, candidate, folder / "bundle")


def start(recipe: ClassifyRecipe, cache: StepCache, reporter: Reporter) -> Run:
    """Read and cut the data, and check its labels where the recipe says so (a cached step).

    Raises: as `read` does.
    """
    splits = check_labels(recipe, read(recipe, reporter), cache, reporter)
    return Run(recipe, splits, cache, reporter)


def check(recipe: ClassifyRecipe, reporter: Reporter) -> None:
    """Say what the data hold, and see that the student fits its teacher. Raises: as `read` and `check_start` do."""
    splits = read(recipe, reporter)
    check_start(recipe, labels=splits.labels, pairs=takes_pairs(splits))


def read(recipe: ClassifyRecipe, reporter: Reporter) -> Splits:
    """Read and cut the data, and say what they hold.

    Raises: RecipeInvalid: not a classify recipe, or its student does not fit the rows; BackendRefused:
        `exits.backends`; and as `prepare` does.
    """
    require_backends(recipe.exits.backends, where="exits.backends")
    if recipe.task != "classify":
        raise RecipeInvalid(f"task: {recipe.task}: the refresh job makes classify students")
    splits = prepare(recipe)
    check_shape(recipe, splits)
    rows = {split: len(getattr(splits, split)) for split in ("train", "dev", "calibration", "gate", "test")}
    reporter.say("data: " + ", ".join(f"{split} {count:,}" for split, count in rows.items()))
    for note in splits.notes:
        reporter.say(f"data: {note}")
    return splits


def _tell_teacher(run: Run, teacher: Teacher) -> None:
    answers = teacher_labels(run, teacher, run.splits.dev)
    right = sum(row.label == answer for row, answer in zip(run.splits.dev, answers, strict=True))
    run.reporter.say(f"teacher: {right / len(answers):.2%} of {len(answers):,} dev rows right, in float32")
    _tell_baseline(run, teacher, "dev")


def _tell_baseline(run: Run, teacher: Teacher, split: str) -> None:
    rows = getattr(run.splits, split)
    found = baseline_on(run, split, rows_to_judge(rows, teacher_labels(run, teacher, rows)))
    run.reporter.say(f"baseline: {found.name}: {found.accuracy:.2%} of {found.rows:,} {split} rows right")


def _candidate(run: Run, teacher: Teacher, transfer: Transfer) -> _Candidate:
    trained = make_student(run, teacher, transfer.texts, transfer.gold)
    pruned = make_pruned(run, teacher, trained, transfer)
    made = make_draft(run, teacher, pruned.trained, transfer, _provenance(run, teacher))
    draft = replace(made, receipts=(*pruned.receipts, *made.receipts))
    for receipt in draft.receipts:
        run.reporter.say(f"compress: {receipt}")
    return _Candidate(draft, _certify(run, draft))


def _certify(run: Run, draft: Draft) -> Certified:
    inputs: dict[str, object] = {
        "step": CERTIFY_STEP,
        "draft": draft.bundle.parent.name,
        "exits": run.recipe.exits.model_dump(mode="json"),
        "population": run.recipe.data.population,
        "rows": {split: run.splits.digests[split] for split in ("dev", "calibration")},
    }
    if further := _further_backends(run.recipe):
        inputs["libraries"] = backend_libraries(further)

    def make(folder: Path) -> None:
        splits = run.splits
        found = certify_draft(draft.bundle, run.recipe, split_a=splits.dev, split_b=splits.calibration)
        document = {
            "temperatures": asdict(found.temperatures),
            "certificates": [certificate.model_dump(mode="json") for certificate in found.certificates],
        }
        (folder / "certificates.json").write_text(json.dumps(document, indent=1), encoding="utf-8")

    folder = run.cache.run("certify", inputs, make)
    document = json.loads((folder / "certificates.json").read_text(encoding="utf-8"))
    return Certified(
        Temperatures(**{use: tuple(values) for use, values in document["temperatures"].items()}),
        tuple(Certificate.model_validate_json(json.dumps(found)) for found in document["certificates"]),
    )


def _seed(run: Run, teacher: Teacher, transfer: Transfer) -> SeedResult:
    """Another seed's student, made like the first and measured on test; never published."""
    candidate = _candidate(run, teacher, transfer)
    inputs = {"step": SEED_STEP, **candidate.inputs(), "test": run.splits.digests["test"]}

    def make(folder: Path) -> None:
        bundle = _assembled(run, teacher, candidate, folder / "bundle")
        answers = teacher_labels(run, teacher, run.splits.test)
        result = seed_result(run.recipe.seed, _on_test(run, bundle, answers)[0], risk=run.recipe.exits.default_risk)
        (folder / "result.json").write_text(json.dumps(asdict(result)), encoding="utf-8")

    folder = run.cache.run("seed", inputs, make)
    fields = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return SeedResult(**{**fields, "retention": tuple(fields["retention"])})


def _version(
    run: Run,
    teacher: Teacher,
    candidate: _Candidate,
    gates: tuple[GateResult, ...],
    others: Sequence[SeedResult],
) -> Path:
    """The finished bundle (a cached step)."""
    inputs = {
        "step": VERSION_STEP,
        **candidate.inputs(),
        "recipe": run.recipe.digest(),
        "rows": run.splits.digests,
        "seeds": [asdict(result) for result in others],
    }

    def make(folder: Path) -> None:
        bundle = _assembled(run, teacher, candidate, folder / "bundle")
        answers = teacher_labels(run, teacher, run.splits.test)
        qualities = _on_test(run, bundle, answers)
        files = _on_test_files(run, bundle, answers)
        first = seed_result(run.recipe.seed, qualities[0], risk=run.recipe.exits.default_risk)
        card = _card(run, teacher, candidate, bundle, gates, qualities, [first, *others])
        write_card(replace(card, files=files), folder / "card")
        _assembled(run, teacher, candidate, folder / "bundle", qualities=qualities, card_dir=folder / "card")

    return run.cache.run("version", inputs, make) / "bundle"


def _assembled(
    run: Run,
    teacher: Teacher,
    candidate: _Candidate,
    folder: Path,
    *,
    qualities: Sequence[StudentQuality] = (),
    card_dir: Path | None = None,
) -> Bundle:
    """A copy of the draft with its certificates, and with what is known of its quality."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(candidate.draft.bundle, folder)
    names = [leave.id for leave in load_bundle(folder).manifest.exits]
    temperatures = candidate.certified.temperatures
    return finalise(
        folder,
        certificates=candidate.certified.certificates,
        temperatures=dict(zip(names, temperatures.exits, strict=True)),
        score_temperatures=dict(zip(names, temperatures.scores, strict=True)),
        default_risk=run.recipe.exits.default_risk if candidate.certified.certificates else None,
        quality=quality_for_manifest("test", qualities) if qualities else None,
        card_dir=card_dir,
        provenance=_provenance(run, teacher),
    )


def _variants(recipe: ClassifyRecipe) -> tuple[Variant, ...]:
    """What is measured: every backend with the shipped precisions, the default precision first."""
    return variants(recipe.exits.backends, recipe.publish.default_first())


def _further_backends(recipe: ClassifyRecipe) -> tuple[str, ...]:
    """Those whose libraries neither a draft nor a provenance names anyway."""
    return tuple(backend for backend in recipe.exits.backends if backend != FIRST_BACKEND)


def _gates(run: Run, teacher: Teacher, candidate: _Candidate) -> tuple[GateResult, ...]:
    """Every gate, all passed (a cached step). Raises: GateFailed: naming those that were not."""
    inputs = {
        "step": GATES_STEP,
        **candidate.inputs(),
        "gates": run.recipe.gates.model_dump(mode="json"),
        "rows": run.splits.digests["gate"],
    }

    def judged(folder: Path) -> tuple[GateResult, ...]:
        _tell_baseline(run, teacher, "gate")
        return _judged(run, teacher, _assembled(run, teacher, candidate, folder / "bundle"))

    return pass_gates(run.cache, run.reporter, judged, name=run.recipe.name, step="gates", inputs=inputs)


def _judged(run: Run, teacher: Teacher, bundle: Bundle) -> tuple[GateResult, ...]:
    rows, wanted = run.splits.gate, _variants(run.recipe)
    measured = measure(bundle, wanted, rows_to_judge(rows, teacher_labels(run, teacher, rows)))
    return (*judge(bundle, run.recipe, measured), *judge_company(bundle, wanted, rows))


def _on_test(run: Run, bundle: Bundle, teacher: Sequence[str]) -> tuple[StudentQuality, ...]:
    """The measurements on the test rows, which the teacher labelled so."""
    return measure(bundle, _variants(run.recipe), rows_to_judge(run.splits.test, teacher))


def _on_test_files(run: Run, bundle: Bundle, teacher: Sequence[str]) -> tuple[FileQuality, ...]:
    """The same for each test file, where there are several."""
    if isinstance(run.recipe.data.test, str):
        return ()
    return by_file(first_variant(run.recipe).load(bundle), run.splits.test, teacher)


def _card(
    run: Run,
    teacher: Teacher,
    candidate: _Candidate,
    bundle: Bundle,
    gates: tuple[GateResult, ...],
    qualities: tuple[StudentQuality, ...],
    seeds: list[SeedResult],
) -> Card:
    splits = run.splits
    return Card(
        manifest=bundle.manifest,
        qualities=qualities,
        teacher_bytes=sum(tensor.numel() * tensor.element_size() for tensor in teacher.encoder_state().values()),
        gates=gates,
        data_notes=splits.notes,
        receipts=candidate.draft.receipts,
        commands=_commands(run.recipe, seeds=len(seeds)),
        frontier=_frontier(bundle, run.recipe, texts_of(splits.test)),
        resplits=draw_again(bundle, run.recipe, split_a=splits.dev, split_b=splits.calibration, test=splits.test),
        seeds=tuple(seeds),
        costs=_costs(run.cache),
        baselines=(baseline_on(run, "test", rows_to_judge(splits.test, teacher_labels(run, teacher, splits.test))),),
    )


def _costs(cache: StepCache) -> tuple[str, ...]:
    """One line a step; of one that was asked for again, the first."""
    first = {(receipt.step, receipt.digest): receipt for receipt in reversed(cache.receipts)}
    return tuple(receipt.line() for receipt in cache.receipts if first[receipt.step, receipt.digest] is receipt)


def _frontier(bundle: Bundle, recipe: ClassifyRecipe, texts: Sequence[Text]) -> tuple[Timing, ...]:
    with pinned(None):
        return frontier(first_variant(recipe).load(bundle), texts)


def _commands(recipe: ClassifyRecipe, *, seeds: int) -> tuple[str, ...]:
    """What makes the version, and what measures it on each test file whose labels are the student's own."""
    written = recipe.written["data"]["test"]
    tests = [written] if isinstance(written, str) else [each["file"] for each in written if not each.get("labels")]
    return (
        refresh_command(recipe.name, seeds=seeds),
        *(f"understudy evaluate {recipe.name} {file}" for file in tests),
    )


def _provenance(run: Run, teacher: Teacher) -> Provenance:
    recipe = run.recipe
    return make_provenance(
        "refresh",
        teacher=teacher_name(recipe, teacher),
        recipe_sha256=recipe.digest(),
        recipe=recipe.written,
        data=(*run.splits.sources, *split_sources(run.splits)),
        libraries=backend_libraries(_further_backends(recipe)),
        notes=recipe.notes,
    )
