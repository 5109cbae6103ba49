"""Distillation: train a student on texts its teacher has labelled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.distill.groups import groups_of
from models.distill.objectives import attention_kl, gold_cross_entropy, hidden_mse, logit_mse, softened_kl
from models.recipe.distil import Distil, ExitWeights, Objective
from models.students.encoder import EncoderStudent, Outputs
from models.students.siamese import SiameseStudent
from models.students.student import Student, encoder_of, exit_names, labels_of
from models.teachers.fit import Fit, Progress, all_batches, fast_matmul, fit
from models.teachers.teacher import Matrix, States, Teacher
from models.teachers.tokens import Indices, Padded, Tokens, batches_in_order_of_length

# B items, T tokens, N texts, C labels, K exits, H hidden of the student, D hidden of the teacher

Inside = Callable[[Padded], States]
"""The teacher's states and attention for a batch in the student's ids."""

_EVALUATION_ITEMS = 256


@dataclass(frozen=True, slots=True)
class TransferSet:
    """What a student learns from: N texts as the student's `tokens`, the teacher's raw `logits` float32 [N, C], and
    `gold` int64 [N], -1 where a text has no gold label."""

    tokens: Tokens
    logits: Matrix
    gold: Indices


def exit_weights(rule: ExitWeights, exits: int, *, step: int = 1) -> tuple[float, ...]:
    """The weight of each exit's loss, summing to 1.

    `depth`: 1 : 2 : 3 ...; `equal`: all the same; `last-heavy`: half for the last, half for the others together;
    `alternating`: at even steps the last alone, at odd ones all the same.

    Source of `alternating`: Xin et al. 2021 (BERxiT), section 3.2.

    >>> exit_weights("last-heavy", 3)
    (0.25, 0.25, 0.5)
    """
    raw = [float(at + 1) for at in range(exits)] if rule == "depth" else [1.0] * exits
    if rule == "last-heavy":
        raw[-1] = max(1.0, exits - 1.0)
    if rule == "alternating" and step % 2 == 0:
        raw[:-1] = [0.0] * (exits - 1)
    return tuple(weight / sum(raw) for weight in raw)


class DistilLoss(nn.Module):
    """The recipe's loss. A module since matching states of another width learns a projection.

    Each exit's logits are compared with the teacher's; where a row has a gold label, the share `gold_weight` of its
    loss is the cross-entropy with it. Hidden states and attention are compared once a layer.
    """

    def __init__(self, settings: Distil, student: Student, *, teacher_hidden: int) -> None:
        super().__init__()
        self._settings = settings
        self._exits = len(exit_names(student))
        self._weights = exit_weights(settings.exit_weights, self._exits)
        self.projections = nn.ModuleList()
        encoder = encoder_of(student)
        if encoder is not None and any(objective.hidden is not None for objective in settings.objectives):
            hidden = encoder.config.hidden
            for _ in range(encoder.config.layers + 1):
                self.projections.append(
                    nn.Identity() if teacher_hidden == hidden else nn.Linear(hidden, teacher_hidden)
                )

    def begin(self, step: int) -> None:
        """Weigh the exits as this step of a training does; before the first step all of them count."""
        self._weights = exit_weights(self._settings.exit_weights, self._exits, step=step)

    def forward(self, outputs: Outputs, logits: Tensor, gold: Tensor, mask: Tensor, inside: States | None) -> Tensor:
        """float32 scalar, mean over the batch.

        Args:
            outputs: the student's.
            logits: float32 [B, C], the teacher's.
            gold: int64 [B], -1 for none.
            mask: float32 [B, T].
            inside: the teacher's states; needed by hidden and attention objectives alone.
        """
        total = torch.zeros(len(logits))
        for weight, ours in zip(self._weights, outputs.exits, strict=True):
            total = total + weight * self._of_exit(ours.float(), logits, gold)
        if inside is not None:
            total = total + self._of_inside(outputs, inside, mask)
        return total.mean()

    def _of_exit(self, ours: Tensor, theirs: Tensor, gold: Tensor) -> Tensor:
        soft = torch.zeros(len(ours))
        for objective in self._settings.objectives:
            if objective.soft_labels is not None:
                soft = soft + softened_kl(ours, theirs, temperature=objective.soft_labels.temperature)
            if objective.logit_mse is not None:
                soft = soft + objective.logit_mse.weight * logit_mse(ours, theirs)
        hard = self._settings.gold_weight * (gold >= 0).float()
        return (1 - hard) * soft + hard * gold_cross_entropy(ours, gold)

    def _of_inside(self, outputs: Outputs, inside: States, mask: Tensor) -> Tensor:
        total = torch.zeros(len(mask))
        layers = len(outputs.attention)
        for objective in self._settings.objectives:
            if objective.hidden is not None:
                for at, (ours, project) in enumerate(zip(outputs.hidden, self.projections, strict=True)):
                    theirs = inside.hidden[matched_layer(at, layers, len(inside.attention))]
                    total = total + objective.hidden.weight / (layers + 1) * hidden_mse(
                        project(ours).float(), theirs, mask
                    )
            if objective.attention is not None:
                for at, weights in enumerate(outputs.attention, start=1):
                    theirs = inside.attention[matched_layer(at, layers, len(inside.attention)) - 1]
                    total = total + objective.attention.weight / layers * attention_kl(weights.float(), theirs, mask)
        return total


def matched_layer(layer: int, layers: int, teacher_layers: int) -> int:
    """The teacher's layer a student's layer is compared with, evenly spread; 0 (the embeddings) with 0.

    >>> [matched_layer(at, 4, 6) for at in range(5)]
    [0, 2, 3, 4, 6]
    """
    return round(layer * teacher_layers / layers)


def needs_inside(objectives: Sequence[Objective]) -> bool:
    """Whether any objective looks inside the teacher, which then runs beside the student."""
    return any(objective.hidden is not None or objective.attention is not None for objective in objectives)


def inside_of(teacher: Teacher, kept_ids: npt.NDArray[np.int64]) -> Inside:
    """The teacher's states for batches in the student's ids.

    Args:
        teacher: the one that labelled.
        kept_ids: int64 [V'], the teacher's id of each of the student's tokens.
    """
    to_teacher = torch.from_numpy(kept_ids)

    def inside(batch: Padded) -> States:
        return teacher.states(Padded(to_teacher[batch.input_ids], batch.attention_mask, batch.token_type_ids))

    return inside


def distil(
    student: Student,
    data: TransferSet,
    settings: Distil,
    *,
    seed: int,
    inside: Inside | None = None,
    teacher_hidden: int = 0,
    table_factor: float = 1.0,
    bf16: bool = True,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `student` in place. It may carry fake quantisation already; it is trained as it is given.

    Args:
        student: initialised.
        data: the transfer set.
        settings: the recipe's `distil`.
        seed: decides the order of rows and dropout; with the same threads, the same seed gives the same student.
        inside: from `inside_of`; needed where `needs_inside(settings.objectives)`.
        table_factor: on the learning rate of sparse tables.
        teacher_hidden: the width of the teacher's states, with `inside`.
        bf16: multiply in bfloat16 where that is faster; off with fake quantisation, whose steps are as fine.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises:
        ValueError: an objective needs `inside` and it was not given.
        FloatingPointError: training diverged.
    """
    if needs_inside(settings.objectives) and inside is None:
        raise ValueError("hidden and attention objectives need `inside`")
    torch.manual_seed(seed)
    criterion = DistilLoss(settings, student, teacher_hidden=teacher_hidden)
    whole = nn.ModuleDict({"student": student, "criterion": criterion})
    plan = Fit(
        epochs=settings.epochs,
        batch_items=settings.batch_items,
        warm_up=settings.warm_up,
        average=settings.average,
        seed=seed,
    )
    loss = loss_on(student, criterion, data, inside=inside, bf16=bf16)
    student.train()
    batches = all_batches(data.tokens.lengths, settings=plan)
    groups = groups_of(
        student,
        learning_rate=settings.learning_rate,
        embedding_factor=settings.embedding_learning_rate_factor,
        weight_decay=settings.weight_decay,
        sparse_factor=table_factor,
        more=tuple(criterion.parameters()),
    )
    fit(
        whole,
        groups,
        loss,
        batches,
        settings=plan,
        checkpoint=checkpoint,
        progress=progress,
        before_step=criterion.begin,
    )
    student.eval()


def loss_on(
    student: Student,
    criterion: DistilLoss,
    data: TransferSet,
    *,
    inside: Inside | None = None,
    bf16: bool = True,
) -> Callable[[Indices], Tensor]:
    """The student's loss on rows of a transfer set: indices -> float32 scalar, the mean over them.

    Args:
        criterion: of this student.
        inside, bf16: as `distil` takes them.
    """
    logits, gold = torch.from_numpy(data.logits), torch.from_numpy(data.gold)

    def loss(rows: Indices) -> Tensor:
        batch = data.tokens.padded(rows)
        with fast_matmul(bf16):
            outputs = outputs_of(student, batch)
        states = None if inside is None else inside(batch)
        value: Tensor = criterion(outputs, logits[rows], gold[rows], batch.attention_mask.float(), states)
        return value

    return loss


def outputs_of(student: Student, batch: Padded) -> Outputs:
    """A pass of the student over a batch; token types go to those alone that look at them, with pairs."""
    if isinstance(student, EncoderStudent | SiameseStudent):
        found: Outputs = student(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    else:
        found = student(batch.input_ids, batch.attention_mask)
    return found


def logits_of(student: Student, tokens: Tokens) -> tuple[Matrix, ...]:
    """The student's raw logits at each of its K exits, float32 [N, C] each, computed in float32 by torch."""
    found = [np.zeros((len(tokens), labels_of(student)), np.float32) for _ in exit_names(student)]
    student.eval()
    with torch.inference_mode():
        for rows in batches_in_order_of_length(tokens.lengths, batch_items=_EVALUATION_ITEMS):
            batch = tokens.padded(rows)
            for into, logits in zip(found, outputs_of(student, batch).exits, strict=True):
                into[rows] = logits.numpy()
    return tuple(found)
