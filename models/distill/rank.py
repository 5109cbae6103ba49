"""Distillation of a ranker: lists of passages whose scores are to lie as the teacher's do."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.distill.bi_encoder import set_level, vector_list_scores
from models.distill.groups import groups_of
from models.distill.pacing import Pace, confidence, difficulties
from models.recipe.dark_examples import SelfPaced
from models.recipe.rank import RankDistil
from models.students.bi_encoder import BiEncoder
from models.students.cross_encoder import score_pairs
from models.students.encoder import EncoderStudent
from models.students.split_ranker import SplitRanker
from models.students.student import Ranker
from models.teachers.cross_encoder import listwise_cross_entropy
from models.teachers.fit import Fit, Progress, all_batches, fast_matmul, fit
from models.teachers.pair_lists import PairLists, SplitLists, list_scores, split_list_scores
from models.teachers.tokens import Indices, Padded, Tokens, batches_in_order_of_length

# B lists, G passages of the longest list, N pairs

_EVALUATION_ITEMS = 64
_CHECKPOINT_STEPS = 100  # a step over lists of paragraphs takes seconds


@dataclass(frozen=True, slots=True)
class RankTransfer:
    """What a ranker learns from: lists in the student's tokens, and the teacher's raw scores, float32 [pairs].

    Of a student that reads the texts apart, the lists are `SplitLists`. `dark`: bool [pairs], which passages were made
    for training; None: none.
    """

    lists: PairLists | SplitLists
    scores: npt.NDArray[np.float32]
    dark: npt.NDArray[np.bool_] | None = None

    @property
    def passages(self) -> PairLists:
        """The lists by their pairs, or by their passages alone."""
        return self.lists.passages if isinstance(self.lists, SplitLists) else self.lists

    def known(self, rows: Indices) -> Tensor:
        """bool [B, G]: where the lists `rows` have a passage that was not made for training."""
        mask = self.passages.mask(rows)
        return mask if self.dark is None else mask & (self.passages.table(rows, self.dark.astype(np.float32)) == 0)


def margin_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of margins: of each list's first passage, the best one, to each of its others.

    Args:
        student: float32 [B, G], raw scores.
        teacher: float32 [B, G], the same, no gradient.
        mask: bool [B, G], where a list has a passage; the first always is one.
    Returns: float32 [B]; 0 where a list has one passage.
    Source: Hofstätter et al. 2020, arXiv:2010.02666.
    """
    ours, theirs = student[:, :1] - student, teacher[:, :1] - teacher
    others = mask.clone()
    others[:, 0] = False
    return ((ours - theirs).square() * others).sum(-1) / others.sum(-1).clamp_min(1)


def listwise_kl(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of each list's softened scores, times temperature squared.

    Args:
        student: float32 [B, G], raw scores.
        teacher: float32 [B, G], the same, no gradient.
        mask: bool [B, G], where a list has a passage.
        temperature: > 0, divides both.
    Returns: float32 [B], nats times temperature squared.
    Source: Ren et al. 2021 (RocketQAv2), arXiv:2110.07367, there without a temperature.
    """
    ours, theirs = (_log_shares(scores / temperature, mask) for scores in (student, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours) * mask).sum(-1)


def _log_shares(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.log_softmax(scores.masked_fill(~mask, -torch.inf), dim=-1).masked_fill(~mask, 0)


def rank_loss(
    student: Tensor,
    teacher: Tensor,
    grades: Tensor,
    mask: Tensor,
    settings: RankDistil,
    *,
    known: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The recipe's loss, a float32 scalar, mean over the lists.

    Args:
        student, teacher: float32 [B, G], raw scores; each list's best passage first.
        grades: float32 [B, G]; lists without a relevant passage have no gold part.
        mask: bool [B, G].
        settings: the recipe's `distil`.
        known: bool [B, G], the passages of the gold part; None: all. Of those made for training no grade is known.
        weights: float32 [B], of the lists; None: all 1.
    """
    soft = torch.zeros(len(student))
    for objective in settings.objectives:
        if objective.margin_mse is not None:
            soft = soft + objective.margin_mse.weight * margin_mse(student, teacher, mask)
        if objective.listwise_kl is not None:
            temperature = objective.listwise_kl.temperature
            kl = listwise_kl(student, teacher, mask, temperature=temperature)
            soft = soft + objective.listwise_kl.weight * kl
    hard = settings.gold_weight * ((grades > 0) & mask).any(-1).float()
    gold = listwise_cross_entropy(student, grades, mask if known is None else known)
    losses = (1 - hard) * soft + hard * gold
    return losses.mean() if weights is None else (weights * losses).mean()


def distil_ranker(
    student: Ranker,
    data: RankTransfer,
    settings: RankDistil,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `student` in place.

    Args:
        student: initialised.
        data: the transfer set.
        settings: the recipe's `distil`.
        seed: decides the order of lists and dropout.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises: FloatingPointError: training diverged.
    """
    torch.manual_seed(seed)
    plan = Fit(
        epochs=settings.epochs,
        batch_items=settings.batch_lists,
        warm_up=settings.warm_up,
        average=settings.average,
        seed=seed,
        checkpoint_steps=_CHECKPOINT_STEPS,
    )
    lists = data.passages
    batches = all_batches(lists.lengths, settings=plan)
    pace = None if settings.self_paced is None else _pace(data, settings.self_paced, steps=len(batches))

    def loss(rows: Indices) -> Tensor:
        theirs, grades = lists.table(rows, data.scores), lists.table(rows, lists.grades)
        return rank_loss(
            _scores(student, data.lists, rows),
            theirs,
            grades,
            lists.mask(rows),
            settings,
            known=data.known(rows),
            weights=None if pace is None else pace.weights(rows),
        )

    student.train()
    fit(
        student,
        groups_of(
            student,
            learning_rate=settings.learning_rate,
            embedding_factor=settings.embedding_learning_rate_factor,
            weight_decay=settings.weight_decay,
        ),
        loss,
        batches,
        settings=plan,
        checkpoint=checkpoint,
        progress=progress,
        before_step=None if pace is None else pace.begin,
    )
    student.eval()
    if isinstance(student, BiEncoder):
        assert isinstance(data.lists, SplitLists), "a bi-encoder learns from texts apart"
        set_level(student, data.lists, data.scores)


def _pace(data: RankTransfer, settings: SelfPaced, *, steps: int) -> Pace:
    """The lists' weights by how sure the teacher is of their passages, those made for training left out."""
    every = np.arange(len(data.passages))
    sure = confidence(data.passages.table(every, data.scores), data.known(every))
    return Pace(difficulties(sure), settings, steps)


def _scores(student: Ranker, lists: PairLists | SplitLists, rows: Indices) -> Tensor:
    """float32 [B, G]: the student's scores of the lists `rows`; gradients flow."""
    if isinstance(student, BiEncoder):
        assert isinstance(lists, SplitLists), "a bi-encoder learns from texts apart"
        return vector_list_scores(student, lists, rows)
    if isinstance(student, SplitRanker):
        assert isinstance(lists, SplitLists), "a split ranker learns from texts apart"
        return _split_scores(student, lists, rows)
    assert isinstance(lists, PairLists), "a cross-encoder learns from pairs as one sequence"

    def score(batch: Padded) -> Tensor:
        with fast_matmul():
            return score_pairs(student, batch)

    return list_scores(score, lists, rows)


def _split_scores(student: SplitRanker, lists: SplitLists, rows: Indices) -> Tensor:
    def read(batch: Padded) -> Tensor:
        with fast_matmul():
            return student.states(batch)

    def join(asked: Tensor, mask: Tensor, passages: Padded) -> Tensor:
        with fast_matmul():
            return student.join(asked, mask, student.states(passages), passages.attention_mask)

    return split_list_scores(read, join, lists, rows)


def scores_of(student: EncoderStudent, tokens: Tokens) -> npt.NDArray[np.float32]:
    """The student's raw scores, float32 [N], computed in float32 by torch."""
    found = np.zeros(len(tokens), np.float32)
    student.eval()
    with torch.inference_mode():
        for rows in batches_in_order_of_length(tokens.lengths, batch_items=_EVALUATION_ITEMS):
            found[rows] = score_pairs(student, tokens.padded(rows)).numpy()
    return found
