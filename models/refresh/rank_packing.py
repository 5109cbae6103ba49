"""From a trained ranker to a draft bundle: export, compression, assembly."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from models.compress.pipeline import final_outputs, quantise_stages
from models.compress.receipt import make_receipt
from models.compress.stored import store_weights
from models.compress.token_table import quantise_token_table
from models.export.bundle import BundleParts, write_draft
from models.export.golden_texts import GOLDEN_TEXTS
from models.export.import_model import INT8
from models.export.stages import ExportedStage, export_stages
from models.recipe.parts import Int8
from models.recipe.rank import RankRecipe
from models.refresh.rank_training import RankRun, TrainedRanker, student_lists
from models.students.bi_encoder import BiEncoder, BiEncoderConfig
from models.students.split_ranker import READS_LEVELS, SplitConfig, SplitRanker
from models.students.vocabulary import Trimmed
from models.teachers.pair_lists import feeds_apart
from models.teachers.tokens import feeds_in_order_of_length, tokenise
from service.bundle.manifest import Exit, Provenance
from service.bundle.sources import JOINED

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
        exported = export_stages(trained.student.stages(), folder / "graphs", parity_atol=_PARITY_ATOL)
        graphs, receipts = _graphs(run, trained, exported)
        shutil.rmtree(folder / "bundle", ignore_errors=True)  # what a killed run left
        write_draft(folder / "bundle", _parts(recipe, trained, exported, graphs, provenance))
        (folder / "receipts.json").write_text(json.dumps(receipts), encoding="utf-8")

    folder = run.cache.run("rank-draft", inputs, make)
    receipts = json.loads((folder / "receipts.json").read_text(encoding="utf-8"))
    return RankDraft(folder / "bundle", tuple(receipts))


def _parts(
    recipe: RankRecipe,
    trained: TrainedRanker,
    exported: Sequence[ExportedStage],
    graphs: Graphs,
    provenance: Provenance,
) -> BundleParts:
    texts, apart = (*GOLDEN_TEXTS, *recipe.golden_texts), isinstance(trained.student, SplitRanker | BiEncoder)
    return BundleParts(
        name=recipe.name,
        task="rank",
        max_tokens=recipe.student.max_tokens,
        pairs="separate" if apart else "joint",
        requires=(JOINED,) if apart else (),
        tokenizer_json=trained.trimmed.tokenizer_json,
        stages=tuple(each.stage for each in exported),
        exits=(Exit(id="full", stage=exported[-1].stage.id, output="score", depth=1.0),),
        graphs={precision: graphs[precision] for precision in recipe.publish.precisions},
        default_precision=recipe.publish.default_precision,
        provenance=provenance,
        golden_texts=tuple(zip(texts, (*texts[1:], texts[0]), strict=True)),
    )


def _graphs(run: RankRun, trained: TrainedRanker, exported: Sequence[ExportedStage]) -> tuple[Graphs, list[str]]:
    """The files by precision and stage id, and the receipts."""
    fp32 = {each.stage.id: each.path for each in exported}
    settings = run.recipe.int8
    if settings is None:
        return {"fp32": fp32}, []
    if settings.token_table == "int8":
        for path in fp32.values():
            onnx.save(quantise_token_table(onnx.load(path)), path)
    if isinstance(trained.student, SplitRanker | BiEncoder):
        return _split_graphs(run, trained.student, trained.trimmed, exported, settings)
    int8 = {stage_id: path.with_name(f"{stage_id}.int8.onnx") for stage_id, path in fp32.items()}
    receipt = quantise_stages(
        [each.stage for each in exported],
        fp32=fp32,
        int8=int8,
        batches=_calibration_batches(run, trained, settings),
        # layers copied from a teacher hold a few large channels, as an imported model's do
        settings=replace(INT8, percentile=settings.percentile),
        store_others=settings.other_weights == "int8",
    )
    return {"fp32": fp32, "int8": int8}, [receipt.line()]


def _split_graphs(
    run: RankRun, student: SplitRanker | BiEncoder, trimmed: Trimmed, exported: Sequence[ExportedStage], settings: Int8
) -> tuple[Graphs, list[str]]:
    """The same where texts are read apart; what stays float32 is stored in 8 bits, since it is a third of the bytes."""
    fp32 = {each.stage.id: each.path for each in exported}
    rounded, int8 = (
        {stage_id: path.with_name(f"{stage_id}.{kind}.onnx") for stage_id, path in fp32.items()}
        for kind in ("rounded", "int8")
    )
    stages, rows = [each.stage for each in exported], calibration_pairs(run, settings)
    batches = feeds_apart(
        trimmed.tokenizer_json, rows, max_tokens=run.recipe.student.max_tokens, batch_items=_CALIBRATION_BATCH
    )
    first = quantise_stages(
        stages,
        fp32=fp32,
        int8=rounded,
        batches=batches,
        # subtle: what reads a state's levels takes them as they are; another scale would round them once more
        settings=replace(INT8, percentile=settings.percentile, keep=frozenset({READS_LEVELS})),
    )
    for stage_id, path in rounded.items():
        onnx.save(store_weights(onnx.load(path)), int8[stage_id])
    second = make_receipt(
        "float32 weights stored in 8 bits",
        before=list(rounded.values()),
        after=list(int8.values()),
        outputs_before=final_outputs(stages, rounded, batches),
        outputs_after=final_outputs(stages, int8, batches),
        labels=False,
    )
    tokens = int(np.mean([batch["second:attention_mask"].sum(1).mean() for batch in batches]))
    return {"fp32": fp32, "int8": int8}, [first.line(), second.line(), _kept_line(student, tokens=tokens)]


def _kept_line(student: SplitRanker | BiEncoder, *, tokens: int) -> str:
    """What a passage of `tokens` tokens costs to keep."""
    if isinstance(student, BiEncoder):
        return vector_line(student.config)
    return state_line(student.config, tokens=tokens)


def vector_line(config: BiEncoderConfig) -> str:
    """What a passage's vector costs to keep, against the same numbers in float32.

    >>> from models.students.encoder import EncoderConfig
    >>> shape = EncoderConfig(9, 1, 1, 384, 1, 1, exits=(), max_tokens=8)
    >>> vector_line(BiEncoderConfig(shape, 256))
    'vector of a passage, 256 int8: 1,024 -> 256 bytes, however long it is'
    """
    width = config.vector
    return f"vector of a passage, {width} int8: {4 * width:,} -> {width:,} bytes, however long it is"


def state_line(config: SplitConfig, *, tokens: int) -> str:
    """What a passage's state costs to keep, against the layer's float32 states that it stands for.

    Args:
        tokens: of a passage.
    """
    before, after = 4 * config.lower.hidden, config.state_width
    return (
        f"state of a passage, {config.lower.hidden} float32 -> {after} int8 a token: {before:,} -> {after:,} bytes a "
        f"token ({before / after:.0f} times less), {tokens * after:,} bytes for a passage of {tokens} tokens"
    )


def calibration_pairs(run: RankRun, settings: Int8) -> list[tuple[str, str]]:
    """Evenly spread pairs of the training lists."""
    pairs = [pair for ranking in student_lists(run) for pair in ranking.pairs]
    return pairs[:: max(1, len(pairs) // settings.rows)][: settings.rows]


def _calibration_batches(
    run: RankRun, trained: TrainedRanker, settings: Int8
) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Pairs of the training lists as one sequence each, in the student's ids."""
    chosen = calibration_pairs(run, settings)
    tokens = tokenise(trained.trimmed.tokenizer_json, chosen, max_tokens=run.recipe.student.max_tokens)
    return feeds_in_order_of_length(tokens, batch_items=_CALIBRATION_BATCH)
