"""Distillation of a split ranker's states: what a text's states expand to is what the teacher's upper layers read.

Every token of every text teaches, so that a few minutes of it replace hours of learning from scores alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.distill.groups import groups_of
from models.recipe.rank import StatesDistil
from models.students.encoder import EncoderStudent
from models.students.split_ranker import SplitRanker
from models.teachers.fit import Fit, Progress, all_batches, fast_matmul, fit
from models.teachers.tokens import Indices, Tokens

_CHECKPOINT_STEPS = 200


@dataclass(frozen=True, slots=True)
class Apart:
    """Texts in the student's ids, each once: `queries` with token types of 0, `passages` with types of 1."""

    queries: Tokens
    passages: Tokens

    @property
    def lengths(self) -> Indices:
        """int64 [N], the queries' and then the passages'."""
        return np.concatenate([self.queries.lengths, self.passages.lengths])


def distil_states(
    student: SplitRanker,
    teacher: EncoderStudent,
    texts: Apart,
    settings: StatesDistil,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the layers that read one text, the compression and the expansions, in place; the rest stays as it is.

    The loss is the squared error of the expanded states against the teacher's, mean over tokens and channels.

    Args:
        student: initialised.
        teacher: the teacher's own layers below the first joined one (`split_start.teacher_below`).
        texts: what is read.
        settings: the recipe's `distil.states`.
        seed: decides the order of texts.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises: FloatingPointError: training diverged.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, section 3.1, there with one layer for each of several.
    """
    torch.manual_seed(seed)
    plan = Fit(
        epochs=settings.epochs,
        batch_items=settings.batch_texts,
        warm_up=settings.warm_up,
        average="none",
        seed=seed,
        checkpoint_steps=_CHECKPOINT_STEPS,
    )
    asked = len(texts.queries)

    def loss(rows: Indices) -> Tensor:
        sides = (
            (texts.queries, rows[rows < asked], student.query_expansion),
            (texts.passages, rows[rows >= asked] - asked, student.passage_expansion),
        )
        errors = [_errors(student, teacher, tokens, own, expansion) for tokens, own, expansion in sides if len(own)]
        return torch.cat(errors).mean()

    student.train()
    groups = groups_of(student, learning_rate=settings.learning_rate, embedding_factor=1.0, weight_decay=0.01)
    batches = all_batches(texts.lengths, settings=plan)
    fit(student, groups, loss, batches, settings=plan, checkpoint=checkpoint, progress=progress)
    student.eval()


def _errors(
    student: SplitRanker, teacher: EncoderStudent, tokens: Tokens, rows: Indices, expansion: nn.Linear
) -> Tensor:
    """float32 [tokens of the texts `rows`]: mean squared error of each one's state, expanded."""
    batch = tokens.padded(rows)
    with fast_matmul():
        guessed = expansion(student.states(batch))
        with torch.no_grad():
            wanted = teacher(batch.input_ids, batch.attention_mask, batch.token_type_ids).hidden[-1]
    errors: Tensor = (guessed.float() - wanted.float()).square().mean(-1)[batch.attention_mask > 0]
    return errors
