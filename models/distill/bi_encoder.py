"""Distillation of a bi-encoder: vectors first, text by text, then the scores of lists, then where they lie.

B lists, G passages of the longest list, N texts, H hidden.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.distill.groups import groups_of
from models.distill.states import Apart
from models.recipe.rank import StatesDistil
from models.students.bi_encoder import BiEncoder
from models.teachers.fit import Fit, Progress, all_batches, fast_matmul, fit
from models.teachers.pair_lists import SplitLists, split_list_scores
from models.teachers.tokens import Indices, Padded

_CHECKPOINT_STEPS = 200
_LEVEL_LISTS, _LEVEL_BATCH = 256, 16


def vector_list_scores(student: BiEncoder, lists: SplitLists, rows: Indices) -> Tensor:
    """float32 [B, G]: the student's scores of the lists `rows`, 0 where a list has ended; gradients flow."""

    def read(batch: Padded) -> Tensor:
        with fast_matmul():
            return student.states(batch)

    def join(asked: Tensor, mask: Tensor, passages: Padded) -> Tensor:
        return student.join(asked, read(passages))

    return split_list_scores(read, join, lists, rows)


def distil_vectors(
    student: BiEncoder,
    texts: Apart,
    targets: npt.NDArray[np.float32],
    settings: StatesDistil,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the encoder in place, so that the mean of a text's states points where the sentence encoder's does.

    The loss is one less the cosine, mean over the texts; the map to a narrower vector stays as it is.

    Args:
        student: initialised.
        texts: what is read.
        targets: float32 [N, H], the sentence encoder's vectors of the queries and then of the passages.
        settings: the recipe's `distil.states`.
        seed: decides the order of texts.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises: FloatingPointError: training diverged.
    Source: Reimers & Gurevych 2020, arXiv:2004.09813, section 3, there with the squared error for the cosine.
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
    asked, wanted = len(texts.queries), torch.from_numpy(targets)

    def loss(rows: Indices) -> Tensor:
        sides = ((texts.queries, rows[rows < asked], 0), (texts.passages, rows[rows >= asked] - asked, asked))
        cosines = []
        for tokens, own, begin in sides:
            if len(own):
                with fast_matmul():
                    pooled = student.pooled(tokens.padded(own))
                cosines.append(torch.cosine_similarity(pooled, wanted[torch.from_numpy(own + begin)]))
        return 1 - torch.cat(cosines).mean()

    student.train()
    groups = groups_of(student.encoder, learning_rate=settings.learning_rate, embedding_factor=1.0, weight_decay=0.01)
    batches = all_batches(texts.lengths, settings=plan)
    fit(student, groups, loss, batches, settings=plan, checkpoint=checkpoint, progress=progress)
    student.eval()


def set_level(student: BiEncoder, lists: SplitLists, scores: npt.NDArray[np.float32]) -> None:
    """Shift the student's scores, in place, so that their mean is the teacher's: no loss of lists says where they lie.

    Args:
        student: trained.
        lists: those it was trained on; evenly spread ones are looked at.
        scores: float32 [pairs], the teacher's raw ones.
    """
    rows = np.arange(len(lists.queries))
    rows = rows[:: max(1, len(rows) // _LEVEL_LISTS)][:_LEVEL_LISTS]
    ours = 0.0
    with torch.inference_mode():
        for begin in range(0, len(rows), _LEVEL_BATCH):
            ours += float(vector_list_scores(student, lists, rows[begin : begin + _LEVEL_BATCH]).sum())
    pairs = lists.passages.pairs_of(rows)
    student.level.add_(float(scores[pairs].mean()) - ours / len(pairs))
