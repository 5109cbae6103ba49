"""From a trained embedder to graphs: its vocabulary trimmed where the recipe asks, export, int8."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from models.compress.int8 import Int8Settings
from models.compress.pipeline import quantise_stages
from models.compress.token_table import quantise_token_table
from models.compress.vocabulary import trim_vocabulary
from models.export.stages import ExportedStage, export_stages
from models.refresh.embed_training import EmbedRun, TrainedEmbedder
from models.students.encoder import EncoderStudent
from models.teachers.tokens import feeds_in_order_of_length, tokenise
from service.bundle.manifest import Stage

_CALIBRATION_BATCH = 32
_PARITY_ATOL = 5e-4
_PROBE_TEXTS = 512


@dataclass(frozen=True, slots=True)
class Packed:
    """The stage, its graph by precision and stage id, its tokenizer, and what each pass cost, one line each."""

    stage: Stage
    graphs: Mapping[str, Mapping[str, Path]]
    tokenizer_json: bytes
    receipts: tuple[str, ...]


def pack(run: EmbedRun, trained: TrainedEmbedder, folder: Path) -> Packed:
    """Export a trained embedder into `folder`, with the recipe's passes.

    Raises: ParityFailed: the graph does not compute what torch does.
    """
    student, trimmed, receipts = trained.student, trained.trimmed, []
    if run.recipe.trim is not None:
        assert isinstance(student, EncoderStudent), "a recipe trims no other"
        texts, least = run.splits.train, run.recipe.trim.min_count
        made = trim_vocabulary(student, trimmed, texts, min_count=least, probe=_spread(run, _PROBE_TEXTS))
        student, trimmed, receipts = made.student, made.trimmed, [made.receipt.line()]
    (exported,) = export_stages(student.stages(), folder, parity_atol=_PARITY_ATOL)
    graphs, more = _graphs(run, trimmed.tokenizer_json, exported)
    return Packed(exported.stage, graphs, trimmed.tokenizer_json, (*receipts, *more))


def _graphs(
    run: EmbedRun, tokenizer_json: bytes, exported: ExportedStage
) -> tuple[dict[str, dict[str, Path]], list[str]]:
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
        batches=_calibration_batches(run, tokenizer_json, settings.rows),
        settings=Int8Settings(percentile=settings.percentile),
        store_others=settings.other_weights == "int8",
    )
    return {"fp32": {stage_id: fp32}, "int8": {stage_id: int8}}, [receipt.line()]


def _calibration_batches(run: EmbedRun, tokenizer_json: bytes, rows: int) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Training texts in the student's ids."""
    tokens = tokenise(tokenizer_json, _spread(run, rows), max_tokens=run.recipe.student.max_tokens)
    return feeds_in_order_of_length(tokens, batch_items=_CALIBRATION_BATCH)


def _spread(run: EmbedRun, rows: int) -> Sequence[str]:
    """At most `rows` of the training texts, evenly from first to last."""
    texts = run.splits.train
    return texts[:: max(1, len(texts) // rows)][:rows]
