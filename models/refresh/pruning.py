"""The step between a trained student and its draft: heads and columns cut out, then trained on. Cached, resumable."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.compress.pipeline import StageRunner
from models.compress.prune import importance, lost, most_important, sliced
from models.compress.receipt import Footing, Measured, TrainedReceipt
from models.distill.train import DistilLoss, TransferSet, distil, logits_of, loss_on
from models.evaluate.calibrate import gold_indices
from models.evaluate.speed import BATCH_ITEMS, Contender, measure, pinned
from models.export.stages import export_stages
from models.recipe.distil import Distil
from models.recipe.parts import Pruning, left_of
from models.refresh.packing import Transfer
from models.refresh.training import (
    CHECKPOINT,
    Run,
    Trained,
    diverging,
    inside_for,
    load_trained,
    save_trained,
    teacher_labels,
    texts_of,
)
from models.students.encoder import EncoderStudent
from models.students.vocabulary import Trimmed
from models.teachers.teacher import Teacher
from models.teachers.tokens import Indices, Text, batches_in_order_of_length, tokenise
from service.runtime.encode import Encoder

PRUNED_STEP = 1

_SCORING_ITEMS = 64
_REPEATS = 3
_RECEIPTS = "receipts.json"


@dataclass(frozen=True, slots=True)
class Pruned:
    """The student to draft, and what pruning it cost, one line a pass."""

    trained: Trained
    receipts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Dev:
    """The dev rows as a student answers them: its tokens, and the label indices of gold and teacher."""

    texts: Sequence[Text]
    gold: Indices
    teacher: Indices


def make_pruned(run: Run, teacher: Teacher, trained: Trained, transfer: Transfer) -> Pruned:
    """The student as the recipe prunes it (a cached step); as it is, where the recipe does not."""
    settings = run.recipe.prune
    if settings is None:
        return Pruned(trained, ())
    inputs = {
        "step": PRUNED_STEP,
        "student": trained.folder.name,
        "prune": settings.model_dump(mode="json"),
        "torch": str(torch.__version__),
    }

    def make(folder: Path) -> None:
        tokens = tokenise(trained.trimmed.tokenizer_json, transfer.texts, max_tokens=run.recipe.student.max_tokens)
        data = TransferSet(tokens, run.labels_of(teacher, transfer.texts), transfer.gold)
        whole = trained.student
        assert isinstance(whole, EncoderStudent), "a recipe prunes encoders alone"
        student, name = _cut(run, whole, data, settings)
        dev = _dev_rows(run, teacher)
        changed = _quality(student, trained.trimmed, dev)
        _recover(run, teacher, student, data, trained.trimmed, settings, folder / CHECKPOINT)
        before, after = _footings(run, (whole, student), trained.trimmed, dev.texts, folder / "graphs")
        receipt = TrainedReceipt(
            name=name,
            before=before,
            after=after,
            batch_items=BATCH_ITEMS,
            rows=len(dev.texts),
            whole=_quality(whole, trained.trimmed, dev),
            changed=changed,
            recovered=_quality(student, trained.trimmed, dev),
        )
        save_trained(folder, student, trained.trimmed)
        (folder / _RECEIPTS).write_text(json.dumps([receipt.line()]), encoding="utf-8")
        (folder / CHECKPOINT).unlink(missing_ok=True)

    folder = run.cache.run("pruned", inputs, make)
    receipts = json.loads((folder / _RECEIPTS).read_text(encoding="utf-8"))
    return Pruned(load_trained(folder), tuple(receipts))


def _cut(run: Run, whole: EncoderStudent, data: TransferSet, settings: Pruning) -> tuple[EncoderStudent, str]:
    """The student without its least important parts, and the pass in words.

    The loss is the recipe's at the exits: what compares states with the teacher's does not count.
    """
    objectives = tuple(each for each in run.recipe.distil.objectives if each.hidden is None and each.attention is None)
    criterion = DistilLoss(run.recipe.distil.model_copy(update={"objectives": objectives}), whole, teacher_hidden=0)
    loss = loss_on(whole, criterion, data, bf16=False)
    found = importance(whole, loss, _spread(data, settings.rows))
    config = whole.config
    heads, columns = left_of(config.heads, settings.heads), left_of(config.feed_forward, settings.feed_forward)
    kept = most_important(found, heads=heads, columns=columns)
    gone = lost(found, kept)
    name = (
        f"prune, heads a layer {config.heads} -> {heads} (the rest had {gone[0]:.1%} of their importance), "
        f"feed_forward {config.feed_forward:,} -> {columns:,} ({gone[1]:.1%})"
    )
    return sliced(whole, kept), name


def _spread(data: TransferSet, rows: int) -> list[Indices]:
    """Batches of at most `rows` texts, evenly from first to last."""
    chosen = np.unique(np.linspace(0, len(data.tokens) - 1, rows).round().astype(np.int64))
    lengths = data.tokens.lengths[chosen]
    return [chosen[batch] for batch in batches_in_order_of_length(lengths, batch_items=_SCORING_ITEMS)]


def _recover(
    run: Run,
    teacher: Teacher,
    student: EncoderStudent,
    data: TransferSet,
    trimmed: Trimmed,
    settings: Pruning,
    checkpoint: Path,
) -> None:
    recipe = run.recipe
    plan: Distil = recipe.distil.model_copy(update=dict(settings.recovery))
    with run.reporter.step("recovery") as progress, diverging():
        distil(
            student,
            data,
            plan,
            seed=recipe.seed,
            inside=inside_for(recipe, teacher, trimmed),
            teacher_hidden=int(teacher.config.hidden_size),
            checkpoint=checkpoint,
            progress=progress,
        )


def _dev_rows(run: Run, teacher: Teacher) -> _Dev:
    rows, names = run.splits.dev, run.splits.labels
    gold = gold_indices([str(row.label) for row in rows], names)
    answers = gold_indices(teacher_labels(run, teacher, rows), names)
    return _Dev(texts_of(rows), gold, answers)


def _quality(student: EncoderStudent, trimmed: Trimmed, dev: _Dev) -> Measured:
    tokens = tokenise(trimmed.tokenizer_json, dev.texts, max_tokens=student.config.max_tokens)
    answers = logits_of(student, tokens)[-1].argmax(axis=1)
    return Measured(float((answers == dev.gold).mean()), float((answers == dev.teacher).mean()))


def _footings(
    run: Run, students: Sequence[EncoderStudent], trimmed: Trimmed, texts: Sequence[Text], folder: Path
) -> tuple[Footing, ...]:
    """The students' graphs, timed turn by turn on the same texts."""
    encoder = Encoder(trimmed.tokenizer_json, max_tokens=run.recipe.student.max_tokens, pad_id=0)
    sizes, contenders = [], []
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    with pinned(None):
        for at, student in enumerate(students):
            exported = export_stages(student.stages(), folder / str(at))
            runner = StageRunner([each.stage for each in exported], {each.stage.id: each.path for each in exported})
            sizes.append(sum(each.path.stat().st_size for each in exported))
            contenders.append(Contender(str(at), encoder, runner))
        timed = measure(contenders, texts, order_by=encoder, repeats=_REPEATS, modes=("ids",), clock=time.process_time)
    shutil.rmtree(folder)
    us = {(each.contender, each.batch_items): 1000 * each.ms_per_text for each in timed}
    return tuple(Footing(size, us[str(at), BATCH_ITEMS], us[str(at), 1]) for at, size in enumerate(sizes))
