"""Distillation of an embedder: its vectors are trained towards the teacher's, in a space turned for short prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.distill.groups import groups_of
from models.recipe.embed import EmbedDistil, EmbedObjective, Prefix
from models.students.encoder import EncoderStudent
from models.students.static import StaticEmbedder
from models.teachers.fit import Fit, Progress, all_batches, fast_matmul, fit
from models.teachers.teacher import Matrix
from models.teachers.tokens import Indices, Tokens

# B items, N texts, D dimensions, P of a prefix

_SAMPLE_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class EmbedTransfer:
    """What an embedder learns from: N texts as its `tokens`, and the teacher's unit vectors, float16 [N, D]."""

    tokens: Tokens
    targets: npt.NDArray[np.float16]


def rotation(targets: npt.NDArray[np.float16], prefixes: Sequence[int], *, seed: int) -> Matrix:
    """An orthogonal map after which each prefix holds the principal directions, evenly mixed inside each block.

    Principal directions alone would leave the last numbers almost constant, and their signs noise; so the directions
    between one prefix and the next are turned at random among themselves.

    Args:
        targets: float16 [N, D], unit vectors.
        prefixes: lengths of the prefixes, each below D; none gives the identity.
        seed: decides the mixing.
    Returns: float32 [D, D], rows are the new axes: turned = targets @ rotation.T.
    """
    dimensions = targets.shape[1]
    if not prefixes:
        return np.eye(dimensions, dtype=np.float32)
    sample = targets[:: max(1, len(targets) // _SAMPLE_ROWS)].astype(np.float64)
    _, axes = np.linalg.eigh(sample.T @ sample)
    principal = axes[:, ::-1].T
    random = np.random.default_rng(seed)
    bounds = [0, *sorted(set(prefixes)), dimensions]
    mixed = [
        np.linalg.qr(random.standard_normal((end - begin, end - begin)))[0] @ principal[begin:end]
        for begin, end in pairwise(bounds)
    ]
    return np.concatenate(mixed).astype(np.float32)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each text's two vectors.

    Args:
        student: float32 [B, P].
        teacher: float32 [B, P], no gradient.
    Returns: float32 [B].
    Source: Reimers & Gurevych 2020, arXiv:2004.09813, there the squared distance of vectors; of unit vectors it is
    twice this.
    """
    return 1 - nn.functional.cosine_similarity(student, teacher, dim=-1)


def similarity_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of each text's softened cosines to the others of the batch, times the temperature.

    Args:
        student: float32 [B, P], B at least 2.
        teacher: float32 [B, P], no gradient.
        temperature: > 0, divides the cosines.
    Returns: float32 [B], nats times the temperature.
    Source: Fang et al. 2021 (SEED), arXiv:2101.04731, equation 3, there against a queue.
    """
    ours, theirs = (_others(vectors, temperature) for vectors in (student, teacher))
    return temperature * (theirs.exp() * (theirs - ours)).sum(-1)


def _others(vectors: Tensor, temperature: float) -> Tensor:
    """float32 [B, B - 1]: log softmax of each vector's cosines to the others."""
    unit = nn.functional.normalize(vectors, dim=-1)
    size = len(unit)
    apart = (unit @ unit.T / temperature)[~torch.eye(size, dtype=torch.bool)].reshape(size, size - 1)
    return torch.log_softmax(apart, dim=-1)


def embed_loss(student: Tensor, teacher: Tensor, settings: EmbedDistil) -> Tensor:
    """The recipe's loss, float32 scalar: each objective of the whole vectors and of each prefix, weights summing to 1.

    Args:
        student, teacher: float32 [B, D].
        settings: the recipe's `distil`.
    Source: Kusupati et al. 2022 (Matryoshka), arXiv:2205.13147, equation 1.
    """
    prefixes = (Prefix(dimensions=student.shape[1]), *settings.prefixes)
    whole = sum(prefix.weight for prefix in prefixes)
    total = torch.zeros(())
    for prefix in prefixes:
        ours, theirs = student[:, : prefix.dimensions], teacher[:, : prefix.dimensions]
        for objective in settings.objectives:
            total = total + prefix.weight / whole * _term(ours, theirs, objective)
    return total


def _term(ours: Tensor, theirs: Tensor, objective: EmbedObjective) -> Tensor:
    if objective.cosine is not None:
        return objective.cosine.weight * cosine_distance(ours, theirs).mean()
    assert objective.similarities is not None
    if len(ours) < 2:
        return ours.sum() * 0  # subtle: of the graph still, since this may be the only term of a last, short batch
    temperature = objective.similarities.temperature
    return objective.similarities.weight * similarity_kl(ours, theirs, temperature=temperature).mean()


def distil_embedder(
    student: EncoderStudent | StaticEmbedder,
    data: EmbedTransfer,
    settings: EmbedDistil,
    *,
    turned: Matrix,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `student` in place.

    Args:
        student: initialised; it writes one embedding of D dimensions.
        data: the transfer set.
        settings: the recipe's `distil`.
        turned: float32 [D, D] from `rotation`.
        seed: decides the order of rows and dropout.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises: FloatingPointError: training diverged.
    """
    torch.manual_seed(seed)
    plan = Fit(
        epochs=settings.epochs,
        batch_items=settings.batch_items,
        warm_up=settings.warm_up,
        average=settings.average,
        seed=seed,
    )
    axes = torch.from_numpy(turned.T.copy())

    def loss(rows: Indices) -> Tensor:
        batch = data.tokens.padded(rows)
        with fast_matmul():
            (ours,) = student(batch.input_ids, batch.attention_mask).exits
        theirs = torch.from_numpy(data.targets[rows].astype(np.float32)) @ axes
        return embed_loss(ours.float(), theirs, settings)

    student.train()
    batches = all_batches(data.tokens.lengths, settings=plan)
    groups = groups_of(
        student,
        learning_rate=settings.learning_rate,
        embedding_factor=settings.embedding_learning_rate_factor,
        weight_decay=settings.weight_decay,
    )
    fit(student, groups, loss, batches, settings=plan, checkpoint=checkpoint, progress=progress)
    student.eval()
