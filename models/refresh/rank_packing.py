"""From a trained ranker to a draft bundle: export, compression, assembly."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from models.compress.pipeline import quantise_stages
from models.compress.token_table import quantise_token_table
from models.export.bundle import BundleParts, write_draft
from models.export.golden_texts import GOLDEN_TEXTS
from models.export.import_model import INT8
from models.export.stages import ExportedStage, export_stages
from models.recipe.parts import Int8
from models.recipe.rank import RankRecipe
from models.refresh.rank_training import RankRun, TrainedRanker, student_lists
from models.teachers.tokens import feeds_in_order_of_length, tokenise
from service.bundle.manifest import Exit, Provenance

DRAFT_STEP = 1

_CALIBRATION_BATCH = 16
_PARITY_ATOL = 5e-4

Graphs = dict[str, dict[str, Path]]


@dataclass(frozen=True, slots=True)
class RankDraft:
    """A bundle without card or quality, and what compressing it cost, one line each."""

    bundle: Path
    receipts: tuple[str, ...]


def make_rank_draft(run: RankRun, trained: TrainedRanker, provenance: Provenance) -> RankDraft:
    """The draft bundle of the trained student (a cached step)."""
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
        (exported,) = export_stages(trained.student.stages(), folder / "graphs", parity_atol=_PARITY_ATOL)
        graphs, receipts = _graphs(run, trained, exported)
        shutil.rmtree(folder / "bundle", ignore_errors=True)  # what a killed run left
        write_draft(folder / "bundle", _parts(recipe, trained, exported, graphs, provenance))
        (folder / "receipts.json").write_text(json.dumps(receipts), encoding="utf-8")

    folder = run.cache.run("rank-draft", inputs, make)
    receipts = json.loads((folder / "receipts.json").read_text(encoding="utf-8"))
    return RankDraft(folder / "bundle", tuple(receipts))


def _parts(
    recipe: RankRecipe, trained: TrainedRanker, exported: ExportedStage, graphs: Graphs, provenance: Provenance
) -> BundleParts:
    texts = (*GOLDEN_TEXTS, *recipe.golden_texts)
    return BundleParts(
        name=recipe.name,
        task="rank",
        max_tokens=recipe.student.max_tokens,
        pairs="joint",
        tokenizer_json=trained.trimmed.tokenizer_json,
        stages=(exported.stage,),
        exits=(Exit(id="full", stage=exported.stage.id, output="score", depth=1.0),),
        graphs={precision: graphs[precision] for precision in recipe.publish.precisions},
        default_precision=recipe.publish.default_precision,
        provenance=provenance,
        golden_texts=tuple(zip(texts, (*texts[1:], texts[0]), strict=True)),
    )


def _graphs(run: RankRun, trained: TrainedRanker, exported: ExportedStage) -> tuple[Graphs, list[str]]:
    """The files by precision and stage id, and the receipts."""
    stage_id, fp32 = exported.stage.id, exported.path
    settings = run.recipe.int8
    if settings is None:
        return {"fp32": {stage_id: fp32}}, []
    if settings.token_table == "int8":
        onnx.save(quantise_token_table(onnx.load(fp32)), fp32)
    int8 = fp32.with_name(f"{stage_id}.int8.onnx")
    receipt = quantise_stages(
        [exported.stage],
        fp32={stage_id: fp32},
        int8={stage_id: int8},
        batches=_calibration_batches(run, trained, settings),
        # layers copied from a teacher hold a few large channels, as an imported model's do
        settings=replace(INT8, percentile=settings.percentile),
    )
    return {"fp32": {stage_id: fp32}, "int8": {stage_id: int8}}, [receipt.line()]


def _calibration_batches(
    run: RankRun, trained: TrainedRanker, settings: Int8
) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Evenly spread pairs of the training lists in the student's ids."""
    pairs = [pair for ranking in student_lists(run) for pair in ranking.pairs]
    chosen = pairs[:: max(1, len(pairs) // settings.rows)][: settings.rows]
    tokens = tokenise(trained.trimmed.tokenizer_json, chosen, max_tokens=run.recipe.student.max_tokens)
    return feeds_in_order_of_length(tokens, batch_items=_CALIBRATION_BATCH)
