"""From a trained student to a draft bundle: int8 training where the recipe asks, export, compression, assembly."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from models.compress.bag_table import quantise_bag_table
from models.compress.int8 import Int8Settings
from models.compress.pipeline import final_outputs, quantise_stages
from models.compress.qat import bake, fake_quantise, measure_ranges, stage_ranges
from models.compress.ranges import Feeds, Range
from models.compress.receipt import Receipt, make_receipt
from models.compress.stored import store_weights
from models.compress.token_table import quantise_token_table
from models.distill.train import TransferSet, distil
from models.export.bundle import BundleParts, write_draft
from models.export.golden_texts import GOLDEN_TEXTS, golden_texts
from models.export.stages import ExportedStage, export_stages
from models.recipe.parts import Int8
from models.refresh.training import Run, Trained, diverging, takes_pairs, texts_of
from models.students.siamese import SiameseStudent
from models.students.student import Student, exit_names
from models.teachers.pair_lists import feeds_apart
from models.teachers.teacher import Teacher
from models.teachers.tokens import Text, feeds_in_order_of_length, tokenise
from service.bundle.manifest import Exit, Provenance
from service.bundle.sources import JOINED

DRAFT_STEP = 1

_CALIBRATION_BATCH, _APART_BATCH = 32, 16
_QAT_CHECKPOINT = "qat.safetensors"


@dataclass(frozen=True, slots=True)
class Draft:
    """A bundle without certificates, and what compressing it cost, one line each."""

    bundle: Path
    receipts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """The transfer set's texts and gold labels (-1 for none)."""

    texts: Sequence[Text]
    gold: npt.NDArray[np.int64]


def make_draft(run: Run, teacher: Teacher, trained: Trained, transfer: Transfer, provenance: Provenance) -> Draft:
    """The draft bundle of a trained student (a cached step)."""
    recipe = run.recipe
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
        student, ranges = trained.student, None
        if recipe.int8 is not None and recipe.int8.int8 == "qat":
            student, ranges = _trained_for_int8(run, teacher, trained, transfer, folder / _QAT_CHECKPOINT)
        exported = export_stages(student.stages(), folder / "graphs")
        graphs, receipts = _graphs(run, trained, student, exported, ranges)
        parts = BundleParts(
            name=recipe.name,
            task=recipe.task,
            labels=run.splits.labels,
            max_tokens=recipe.student.max_tokens,
            tokenizer_json=trained.trimmed.tokenizer_json,
            stages=tuple(each.stage for each in exported),
            exits=_exits(student, exported),
            graphs={precision: graphs[precision] for precision in recipe.publish.precisions},
            default_precision=recipe.publish.default_precision,
            provenance=provenance,
            pairs=_pairs(run, student),
            requires=(JOINED,) if isinstance(student, SiameseStudent) else (),
            golden_texts=golden_texts((*GOLDEN_TEXTS, *recipe.golden_texts), pairs=takes_pairs(run.splits)),
        )
        shutil.rmtree(folder / "bundle", ignore_errors=True)  # what a killed run left
        write_draft(folder / "bundle", parts)
        (folder / "receipts.json").write_text(json.dumps(receipts), encoding="utf-8")
        (folder / _QAT_CHECKPOINT).unlink(missing_ok=True)

    folder = run.cache.run("draft", inputs, make)
    receipts = json.loads((folder / "receipts.json").read_text(encoding="utf-8"))
    return Draft(folder / "bundle", tuple(receipts))


def _pairs(run: Run, student: Student) -> Literal["none", "joint", "separate"]:
    if isinstance(student, SiameseStudent):
        return "separate"
    return "joint" if takes_pairs(run.splits) else "none"


def _exits(student: Student, exported: Sequence[ExportedStage]) -> tuple[Exit, ...]:
    names = exit_names(student)
    # of two texts read apart, the stages before the one exit have none
    return tuple(
        Exit(id=name, stage=each.stage.id, output="logits", depth=depth)
        for name, each, depth in zip(names, exported[-len(names) :], student.depths(), strict=True)
    )


def _graphs(
    run: Run,
    trained: Trained,
    student: Student,
    exported: Sequence[ExportedStage],
    ranges: Mapping[str, Range] | None,
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """The files by precision and stage id, and the receipts."""
    fp32 = {each.stage.id: each.path for each in exported}
    settings = run.recipe.int8
    if settings is None:
        return {"fp32": fp32}, []
    batches = _calibration_batches(run, trained, settings)
    receipts = [_int8_tables(exported, batches).line()] if settings.token_table == "int8" else []
    int8 = {stage_id: path.with_name(f"{stage_id}.int8.onnx") for stage_id, path in fp32.items()}
    by_stage = None
    if ranges is not None:
        per_stage = stage_ranges(student, student.stages(), ranges)
        by_stage = {each.stage.id: spans for each, spans in zip(exported, per_stage, strict=True)}
    receipt = quantise_stages(
        [each.stage for each in exported],
        fp32=fp32,
        int8=int8,
        batches=batches,
        settings=Int8Settings(percentile=settings.percentile),
        trained=by_stage,
        store_others=settings.other_weights == "int8",
    )
    receipts.append(receipt.line())
    if isinstance(student, SiameseStudent):
        receipts.append(_stored(exported, int8, batches).line())
    return {"fp32": fp32, "int8": int8}, receipts


def _stored(exported: Sequence[ExportedStage], graphs: Mapping[str, Path], batches: Sequence[Feeds]) -> Receipt:
    """Store what the graphs still compute with in float32 as int8, in place: a head of two vectors is nothing else."""
    stages = [each.stage for each in exported]
    before = {stage_id: path.with_suffix(".whole") for stage_id, path in graphs.items()}
    for stage_id, path in graphs.items():
        shutil.copyfile(path, before[stage_id])
        onnx.save(store_weights(onnx.load(path)), path)
    receipt = make_receipt(
        "float32 weights stored in 8 bits",
        before=list(before.values()),
        after=list(graphs.values()),
        outputs_before=final_outputs(stages, before, batches),
        outputs_after=final_outputs(stages, graphs, batches),
    )
    for path in before.values():
        path.unlink()
    return receipt


def _int8_tables(exported: Sequence[ExportedStage], batches: Sequence[Feeds]) -> Receipt:
    """Give every table that a stage looks tokens up in int8 rows, in the float32 graphs themselves."""
    stages = [each.stage for each in exported]
    before = {each.stage.id: each.path.with_suffix(".whole") for each in exported}
    after = {each.stage.id: each.path for each in exported}
    for stage in stages:
        shutil.copyfile(after[stage.id], before[stage.id])
        if "input_ids" in stage.inputs.values():
            smaller = quantise_bag_table(quantise_token_table(onnx.load(before[stage.id])))
            onnx.save(smaller, after[stage.id])
    receipt = make_receipt(
        "int8 token tables",
        before=list(before.values()),
        after=list(after.values()),
        outputs_before=final_outputs(stages, before, batches),
        outputs_after=final_outputs(stages, after, batches),
    )
    for path in before.values():
        path.unlink()
    return receipt


def _calibration_batches(run: Run, trained: Trained, settings: Int8) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Evenly spread whole training rows in the student's ids; the longest rows, where they are parts of others. Texts
    that the student reads apart, each under its side."""
    texts = texts_of(run.splits.train)
    if run.recipe.data.parts == "substrings":
        texts = sorted(texts, key=lambda text: len(str(text)))[-4 * settings.rows :]
    chosen = texts[:: max(1, len(texts) // settings.rows)][: settings.rows]
    if isinstance(trained.student, SiameseStudent):
        pairs = [text for text in chosen if not isinstance(text, str)]
        return feeds_apart(
            trained.trimmed.tokenizer_json, pairs, max_tokens=run.recipe.student.max_tokens, batch_items=_APART_BATCH
        )
    tokens = tokenise(trained.trimmed.tokenizer_json, chosen, max_tokens=run.recipe.student.max_tokens)
    return feeds_in_order_of_length(tokens, batch_items=_CALIBRATION_BATCH)


def _trained_for_int8(
    run: Run, teacher: Teacher, trained: Trained, transfer: Transfer, checkpoint: Path
) -> tuple[Student, Mapping[str, Range]]:
    """A copy of the student trained on with rounded weights and activations, and the ranges it was trained with."""
    recipe, settings = run.recipe, run.recipe.int8
    assert settings is not None, "only called for an int8 pass"
    student = copy.deepcopy(trained.student)
    ranges = measure_ranges(student, _calibration_batches(run, trained, settings), percentile=settings.percentile)
    fake_quantise(student, ranges, token_table=settings.token_table == "int8")
    plan: dict[str, Any] = {
        "epochs": settings.qat_epochs,
        "learning_rate": settings.qat_learning_rate,
        "average": "none",
        "objectives": tuple(o for o in recipe.distil.objectives if o.hidden is None and o.attention is None),
    }
    tokens = tokenise(trained.trimmed.tokenizer_json, transfer.texts, max_tokens=recipe.student.max_tokens)
    with run.reporter.step("int8 training") as progress, diverging():
        distil(
            student,
            TransferSet(tokens, run.labels_of(teacher, transfer.texts), transfer.gold),
            recipe.distil.model_copy(update=plan),
            seed=recipe.seed,
            bf16=False,
            checkpoint=checkpoint,
            progress=progress,
        )
    bake(student)
    return student, ranges
