"""The refresh of an embedder: recipe → texts → teacher's vectors → student → draft → gates → test → card → publish."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from models.data.rows import Row
from models.data.texts import prepare_texts
from models.evaluate.embedding import (
    EmbedQuality,
    NeighbourAccuracy,
    PairQuality,
    likeness,
    neighbour_accuracy,
    pair_quality,
    pair_texts,
    vectors_of,
)
from models.export.bundle import BundleParts, finalise, write_draft
from models.export.golden_texts import GOLDEN_TEXTS
from models.export.provenance import make_provenance
from models.recipe.embed import EmbedRecipe
from models.refresh.cache import StepCache
from models.refresh.drafted import Drafted
from models.refresh.embed_packing import Packed, pack
from models.refresh.embed_training import (
    EmbedRun,
    TrainedEmbedder,
    check_start,
    embed_teacher,
    make_embedder,
    unit_vectors,
)
from models.refresh.gating import pass_gates
from models.refresh.progress import Reporter
from models.refresh.publishing import Published, publish, teacher_name
from models.report.card import GateResult
from models.report.embed_card import EmbedCard, EmbedSeed, quality_for_manifest, write_embed_card
from models.report.seeds import refresh_command
from models.teachers.teacher import Matrix, Teacher
from service.bundle.load import Bundle, load_bundle
from service.bundle.manifest import Exit, Provenance
from service.runtime.student import Student
from service.store.store import Store

# N texts, D dimensions

DRAFT_STEP, GATES_STEP, SEED_STEP, VERSION_STEP = 2, 1, 1, 1

_CALIBRATION_BATCH = 32
_PARITY_ATOL = 5e-4
_COMPANY_COSINE = 0.9999
_COMPANY_TEXTS = 256


@dataclass(frozen=True, slots=True)
class _Draft:
    """A bundle without card or quality, and what compressing it cost."""

    bundle: Path
    trained: TrainedEmbedder
    receipts: tuple[str, ...]


def start_embed(recipe: EmbedRecipe, cache: StepCache, reporter: Reporter) -> EmbedRun:
    """Read and cut the texts. Raises: as `prepare_texts` does."""
    splits = prepare_texts(recipe)
    counts = ", ".join(f"{name} {len(getattr(splits, name)):,}" for name in ("train", "gate", "dev", "test"))
    reporter.say(f"data: {counts}")
    for note in splits.notes:
        reporter.say(f"data: {note}")
    return EmbedRun(recipe, splits, cache, reporter)


def check_embed(recipe: EmbedRecipe, cache: StepCache, reporter: Reporter) -> None:
    """Say what the data hold, and see that the student fits its teacher. Raises: as `start_embed` and `check_start`
    do; TeacherInvalid."""
    start_embed(recipe, cache, reporter)
    check_start(recipe, embed_teacher(recipe))


def refresh_embed(
    recipe: EmbedRecipe, *, store: Path, cache: StepCache, seeds: int = 1, reporter: Reporter
) -> Published:
    """Make and publish a new version of an embedder.

    Args:
        seeds: how many seeds to train, from the recipe's on; the first is published, if it was not before, and the
            others go into its card.
    Raises:
        OfflineError: the recipe, data or teacher is wrong; GateFailed: a gate was not met. Nothing is published.
        StoreError: the version could not be published; the store is as it was.
    """
    run = start_embed(recipe, cache, reporter)
    teacher = embed_teacher(recipe)
    check_start(recipe, teacher)
    draft = _draft(run, teacher)
    gates = _gates(run, teacher, draft)
    others = [recipe.model_copy(update={"seed": recipe.seed + more}) for more in range(1, seeds)]
    results = [_seed(EmbedRun(other, run.splits, cache, reporter), teacher) for other in others]
    return publish(recipe, _version(run, teacher, draft, gates, results), Store(store), reporter)


def embed_draft(run: EmbedRun) -> Drafted:
    """The student, held to no gate and published nowhere (cached steps). Raises: OfflineError."""
    teacher = embed_teacher(run.recipe)
    check_start(run.recipe, teacher)
    return Drafted(_draft(run, teacher).bundle, teacher, teacher_name(run.recipe, teacher))


def _draft(run: EmbedRun, teacher: Teacher) -> _Draft:
    """The draft bundle of the trained student (a cached step)."""
    recipe, trained = run.recipe, make_embedder(run, teacher)
    inputs = {
        "step": DRAFT_STEP,
        "student": trained.folder.name,
        "compress": [entry.model_dump(mode="json") for entry in recipe.compress],
        "publish": [recipe.publish.precisions, recipe.publish.default_precision],
        "golden": [*GOLDEN_TEXTS, *recipe.golden_texts],
        "name": recipe.name,
        "libraries": [onnx.__version__, onnxruntime.__version__],
    }

    def make(folder: Path) -> None:
        packed = pack(run, trained, folder / "graphs")
        shutil.rmtree(folder / "bundle", ignore_errors=True)  # what a killed run left
        write_draft(folder / "bundle", _parts(run, teacher, trained, packed))
        (folder / "receipts.json").write_text(json.dumps(packed.receipts), encoding="utf-8")

    folder = run.cache.run("draft", inputs, make)
    receipts = json.loads((folder / "receipts.json").read_text(encoding="utf-8"))
    for receipt in receipts:
        run.reporter.say(f"compress: {receipt}")
    return _Draft(folder / "bundle", trained, tuple(receipts))


def _parts(
    run: EmbedRun,
    teacher: Teacher,
    trained: TrainedEmbedder,
    packed: Packed,
) -> BundleParts:
    recipe = run.recipe
    return BundleParts(
        name=recipe.name,
        task="embed",
        max_tokens=recipe.student.max_tokens,
        tokenizer_json=packed.tokenizer_json,
        stages=(packed.stage,),
        exits=(Exit(id="full", stage=packed.stage.id, output="embedding", depth=1.0),),
        graphs={precision: packed.graphs[precision] for precision in recipe.publish.precisions},
        default_precision=recipe.publish.default_precision,
        # the axes are the teacher's, turned: another student of the same rotation is near enough to compare with, but
        # stored vectors of one are not those of the other
        space_id=_space(recipe, trained),
        embedding_dimensions=len(trained.turned),
        provenance=_provenance(run, teacher),
        golden_texts=(*GOLDEN_TEXTS, *recipe.golden_texts),
    )


def _provenance(run: EmbedRun, teacher: Teacher) -> Provenance:
    recipe = run.recipe
    return make_provenance(
        "refresh",
        teacher=teacher_name(recipe, teacher),
        recipe_sha256=recipe.digest(),
        recipe=recipe.written,
        data=run.splits.sources,
        notes=recipe.notes,
    )


def _space(recipe: EmbedRecipe, trained: TrainedEmbedder) -> str:
    """Another training is another space, and so is another vocabulary: texts with dropped tokens move."""
    trimmed = "" if recipe.trim is None else f"-t{recipe.trim.min_count}"
    return f"{recipe.name}-{trained.folder.name}{trimmed}"


def _gates(run: EmbedRun, teacher: Teacher, draft: _Draft) -> tuple[GateResult, ...]:
    """Every gate, all passed (a cached step). Raises: GateFailed: naming those that were not."""
    inputs = {
        "step": GATES_STEP,
        "draft": draft.bundle.parent.name,
        "gates": run.recipe.gates.model_dump(mode="json"),
        "rows": {name: run.splits.digests()[name] for name in ("gate", "dev")},
    }

    return pass_gates(
        run.cache,
        run.reporter,
        lambda _: _judged(run, teacher, draft),
        name=run.recipe.name,
        step="gates",
        inputs=inputs,
    )


def _judged(run: EmbedRun, teacher: Teacher, draft: _Draft) -> tuple[GateResult, ...]:
    bundle, wanted = load_bundle(draft.bundle), run.recipe.gates
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    gates = [GateResult("bytes", f"<= {wanted.bytes:,}", f"{size:,}", size <= wanted.bytes)]
    theirs = unit_vectors(teacher, list(run.splits.gate)) @ draft.trained.turned.T
    for precision in run.recipe.publish.default_first():
        student = Student(bundle, precision=precision)
        alike = likeness(vectors_of(student, run.splits.gate), theirs)
        reference, forms = _on_pairs(run, teacher, student, "dev")
        kept, rows = forms[0].retention, f"{alike.rows:,} gate texts"
        gates += [
            _least(f"cosine to the teacher, {precision}", wanted.cosine, alike.cosine, rows),
            _least(f"neighbours shared with the teacher, {precision}", wanted.overlap, alike.overlap, rows),
            _least(f"retention on dev, {precision}", wanted.retention, kept, f"of the teacher's {reference:.4f}"),
            _company(student, run.splits.gate[:_COMPANY_TEXTS]),
        ]
    return tuple(gates)


def _least(name: str, required: float, reached: float, on: str) -> GateResult:
    # subtle: written so that NaN fails
    return GateResult(name, f">= {required:g}", f"{reached:.4f} ({on})", bool(reached >= required))


def _company(student: Student, texts: Sequence[str]) -> GateResult:
    """Whether an embedding depends on the batch or its padding."""
    together = vectors_of(student, texts)
    alone = np.concatenate([vectors_of(student, [text]) for text in texts])
    worst = float((together * alone).sum(axis=1).min())
    return _least(
        f"company, {student.precision}", _COMPANY_COSINE, worst, "least cosine of a text alone to itself in a batch"
    )


def _on_pairs(run: EmbedRun, teacher: Teacher, student: Student, split: str) -> tuple[float, tuple[PairQuality, ...]]:
    pairs = getattr(run.splits, split)
    texts = pair_texts(pairs)
    prefixes = [prefix.dimensions for prefix in run.recipe.distil.prefixes]
    return pair_quality(vectors_of(student, texts), unit_vectors(teacher, texts), pairs, prefixes=prefixes)


def _on_test(run: EmbedRun, teacher: Teacher, draft: _Draft) -> tuple[EmbedQuality, ...]:
    """The one look at the test split, a measurement for each precision."""
    bundle, found = load_bundle(draft.bundle), []
    theirs = unit_vectors(teacher, list(run.splits.gate)) @ draft.trained.turned.T
    for precision in run.recipe.publish.default_first():
        student = Student(bundle, precision=precision)
        reference, forms = _on_pairs(run, teacher, student, "test")
        found.append(
            EmbedQuality(
                precision=precision,
                pairs=len(run.splits.test),
                teacher=reference,
                forms=forms,
                likeness=likeness(vectors_of(student, run.splits.gate), theirs),
                neighbours=_neighbours(run, teacher, student),
            )
        )
    return tuple(found)


def _neighbours(run: EmbedRun, teacher: Teacher, student: Student) -> NeighbourAccuracy | None:
    rows = run.splits.neighbours
    if rows is None:
        return None

    def reached(vectors: Callable[[Sequence[Row]], Matrix]) -> float:
        return neighbour_accuracy(vectors(rows.fit), rows.fit, vectors(rows.test), rows.test)

    return NeighbourAccuracy(
        rows=len(rows.test),
        student=reached(lambda some: vectors_of(student, [row.text for row in some])),
        teacher=reached(lambda some: unit_vectors(teacher, [row.text for row in some])),
    )


def _seed(run: EmbedRun, teacher: Teacher) -> EmbedSeed:
    """Another seed's student, made like the first and measured on test; never published."""
    draft = _draft(run, teacher)
    inputs = {"step": SEED_STEP, "draft": draft.bundle.parent.name, "test": run.splits.digests()["test"]}

    def make(folder: Path) -> None:
        result = EmbedSeed.of(run.recipe.seed, _on_test(run, teacher, draft)[0])
        (folder / "result.json").write_text(json.dumps(asdict(result)), encoding="utf-8")

    folder = run.cache.run("seed", inputs, make)
    return EmbedSeed(**json.loads((folder / "result.json").read_text(encoding="utf-8")))


def _version(
    run: EmbedRun, teacher: Teacher, draft: _Draft, gates: tuple[GateResult, ...], others: Sequence[EmbedSeed]
) -> Path:
    """The finished bundle (a cached step)."""
    inputs = {
        "step": VERSION_STEP,
        "draft": draft.bundle.parent.name,
        "gates": [asdict(gate) for gate in gates],
        "seeds": [asdict(seed) for seed in others],
        "test": run.splits.digests()["test"],
        "files": [source.sha256 for source in run.splits.sources],
        "recipe": run.recipe.digest(),
    }

    def make(folder: Path) -> None:
        with run.reporter.step("test"):
            qualities = _on_test(run, teacher, draft)
        seeds = (EmbedSeed.of(run.recipe.seed, qualities[0]), *others)
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        shutil.copytree(draft.bundle, folder / "bundle")
        # subtle: the draft's own may be of an earlier recipe with the same student
        bundle = finalise(folder / "bundle", provenance=_provenance(run, teacher))
        write_embed_card(_card(run, teacher, draft, bundle, gates, qualities, seeds), folder / "card")
        quality = quality_for_manifest(qualities)
        finalise(folder / "bundle", quality=quality, card_dir=folder / "card")

    return run.cache.run("version", inputs, make) / "bundle"


def _card(
    run: EmbedRun,
    teacher: Teacher,
    draft: _Draft,
    bundle: Bundle,
    gates: tuple[GateResult, ...],
    qualities: tuple[EmbedQuality, ...],
    seeds: tuple[EmbedSeed, ...],
) -> EmbedCard:
    return EmbedCard(
        manifest=bundle.manifest,
        qualities=qualities,
        teacher_bytes=sum(tensor.numel() * tensor.element_size() for tensor in teacher.encoder_state().values()),
        gates=gates,
        data_notes=run.splits.notes,
        receipts=draft.receipts,
        commands=(refresh_command(run.recipe.name, seeds=len(seeds)),),
        seeds=seeds,
        costs=tuple(receipt.line() for receipt in run.cache.receipts),
    )
