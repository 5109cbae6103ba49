"""Fine-tuning a teacher to a task: head first (centroids or logistic regression), then all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from models.data.rows import Row, text_of
from models.errors import TeacherInvalid
from models.recipe.parts import FineTune
from models.teachers.fit import Fit, Group, Progress, accuracy, all_batches, fast_matmul, fit
from models.teachers.teacher import Matrix, MeanPooled, Teacher, load_teacher
from models.teachers.tokens import Indices, Text, tokenise

# B items, T tokens, H hidden, C labels, N texts

_CENTROID_SCALE = 10.0
_LOGISTIC_STRENGTH = 10.0
_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class FineTuned:
    """A fine-tuned teacher and its dev accuracy after each epoch (empty without dev rows)."""

    teacher: Teacher
    dev_accuracy: tuple[float, ...]


def gold_of(rows: Sequence[Row], labels: Sequence[str]) -> Indices:
    """int64 [N]: each row's label as its index in `labels`, -1 where it has none."""
    index = {label: at for at, label in enumerate(labels)}
    return np.array([-1 if row.label is None else index[row.label] for row in rows], dtype=np.int64)


def fine_tune(
    source: str | Path,
    rows: Sequence[Row],
    labels: tuple[str, ...],
    settings: FineTune,
    *,
    seed: int,
    dev: Sequence[Row] = (),
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> FineTuned:
    """Fine-tune the encoder at `source` to `labels`.

    Args:
        source: see `load_teacher`.
        rows: labelled rows.
        labels: C label names; logit k is that of `labels[k]`.
        settings: the recipe's `teacher.fine_tune`.
        seed: decides the order of rows and dropout.
        dev: rows whose accuracy is reported after each epoch; nothing is chosen by it.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises: TeacherInvalid: does not load, has no mean pooling, or training diverged.
    """
    teacher = load_teacher(source, max_tokens=settings.max_tokens)
    if not isinstance(teacher.network, MeanPooled):
        raise TeacherInvalid("fine-tuning needs a bare encoder, not a sequence classifier")
    task = _Task(tuple(text_of(row) for row in rows), gold_of(rows, labels), settings, seed)
    torch.manual_seed(seed)
    head = _first_head(teacher, task, labels)
    network = MeanPooled(teacher.network.encoder, head)
    tuned = Teacher(network, teacher.tokenizer_json, labels, max_tokens=settings.max_tokens)
    try:
        scores = _train(tuned, task, dev=_Dev(dev, labels), checkpoint=checkpoint, progress=progress)
    except FloatingPointError as error:
        raise TeacherInvalid(f"fine-tuning the teacher diverged: {error}") from error
    return FineTuned(tuned, scores)


class _Dev:
    """Dev rows and the accuracies seen so far."""

    def __init__(self, rows: Sequence[Row], labels: Sequence[str]) -> None:
        self._texts, self._gold = [text_of(row) for row in rows], gold_of(rows, labels)
        self.scores: list[float] = []

    def token_ids(self, teacher: Teacher) -> set[int]:
        return set(tokenise(teacher.tokenizer_json, self._texts, max_tokens=teacher.max_tokens).ids.tolist())

    def look(self, teacher: Teacher) -> str:
        if not self._texts:
            return ""
        teacher.network.eval()
        self.scores.append(accuracy(teacher.logits(self._texts), self._gold))
        teacher.network.train()
        return f"dev accuracy {self.scores[-1]:.4f}"


@dataclass(frozen=True, slots=True)
class _Task:
    """What is trained on: N texts, their gold label indices, the recipe's settings, the seed."""

    texts: tuple[Text, ...]
    gold: Indices
    settings: FineTune
    seed: int


def _train(
    teacher: Teacher, task: _Task, *, dev: _Dev, checkpoint: Path | None, progress: Progress | None
) -> tuple[float, ...]:
    network, settings = teacher.network, task.settings
    tokens = tokenise(teacher.tokenizer_json, task.texts, max_tokens=settings.max_tokens)
    plan = Fit(
        epochs=settings.epochs,
        batch_items=settings.batch_items,
        warm_up=_WARM_UP,
        average=settings.average,
        seed=task.seed,
    )
    batches = all_batches(tokens.lengths, settings=plan)
    per_epoch = -(-len(tokens) // settings.batch_items)
    targets = torch.from_numpy(task.gold)

    def loss(rows: Indices) -> Tensor:
        with fast_matmul():
            logits = network(tokens.padded(rows))
        return nn.functional.cross_entropy(logits.float(), targets[rows], label_smoothing=settings.label_smoothing)

    def look(done: int) -> None:
        note = dev.look(teacher)
        if progress is not None and note:
            progress(done, len(batches), note)

    def after_step(done: int) -> None:
        if done % per_epoch == 0 and done < len(batches):
            look(done)

    network.train()
    table = _UsedRows.put_into(network, {*tokens.ids.tolist(), *dev.token_ids(teacher)})
    fit(
        network,
        _groups(network, settings),
        loss,
        batches,
        settings=plan,
        checkpoint=checkpoint,
        progress=progress,
        after_step=after_step,
    )
    table.take_out_of(network)
    look(len(batches))
    network.eval()
    return tuple(dev.scores)


def _groups(network: nn.Module, settings: FineTune) -> tuple[Group, ...]:
    """Matrices with weight decay; biases, norms and the token table without."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = tuple(p for name, p in named if p.ndim == 2 and "embeddings" not in name)
    plain = tuple(p for name, p in named if p.ndim != 2 or "embeddings" in name)
    return (
        Group(decayed, settings.learning_rate, settings.weight_decay),
        Group(plain, settings.learning_rate, 0.0),
    )


class _UsedRows(nn.Module):
    """The token table less the rows no text uses: the optimiser's work on 30,000 rows is most of a small step.

    Ids stay those of the whole table, which `take_out_of` puts back with the trained rows in it.
    """

    index: Tensor

    def __init__(self, whole: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.whole = [whole]  # subtle: in a list, so that it is no submodule and is neither trained nor saved
        self.used = used
        index = torch.zeros(whole.num_embeddings, dtype=torch.int64)
        index[used] = torch.arange(len(used))
        self.register_buffer("index", index, persistent=False)
        self.rows = nn.Embedding(len(used), whole.embedding_dim, _weight=whole.weight.detach()[used].clone())

    def forward(self, ids: Tensor) -> Tensor:
        """float [B, T, H] of int64 [B, T]."""
        states: Tensor = self.rows(self.index[ids])
        return states

    @classmethod
    def put_into(cls, network: nn.Module, used: set[int]) -> "_UsedRows":
        embeddings = network.get_submodule("encoder.embeddings")
        whole = embeddings.get_submodule("word_embeddings")
        assert isinstance(whole, nn.Embedding)
        embeddings.word_embeddings = cls(whole, torch.tensor(sorted(used)))
        return embeddings.word_embeddings

    def take_out_of(self, network: nn.Module) -> None:
        whole = self.whole[0]
        with torch.no_grad():
            whole.weight[self.used] = self.rows.weight
        network.get_submodule("encoder.embeddings").word_embeddings = whole


def _first_head(teacher: Teacher, task: _Task, labels: Sequence[str]) -> nn.Linear:
    """The head training starts from: random, class centroids, or logistic regression on the frozen embeddings."""
    head = nn.Linear(int(teacher.config.hidden_size), len(labels))
    if task.settings.head == "random":
        return head
    embeddings = teacher.embeddings(task.texts)
    weights = _centroids(embeddings, task.gold, len(labels))
    bias = np.zeros(len(labels), np.float32)
    if task.settings.head == "logistic":
        weights, bias = _logistic(embeddings, task.gold, len(labels))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
        head.bias.copy_(torch.from_numpy(bias))
    return head


def _centroids(embeddings: Matrix, gold: Indices, n_labels: int) -> Matrix:
    """float32 [C, H]: each class's mean unit embedding less the mean of them all, scaled to moderate scores."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / norms
    centroids = np.stack([unit[gold == label].mean(0) for label in range(n_labels)])
    scaled: Matrix = (_CENTROID_SCALE * (centroids - centroids.mean(0)) / norms.mean()).astype(np.float32)
    return scaled


def _logistic(embeddings: Matrix, gold: Indices, n_labels: int) -> tuple[Matrix, npt.NDArray[np.float32]]:
    scale = float(np.linalg.norm(embeddings, axis=1).mean())
    found = LogisticRegression(C=_LOGISTIC_STRENGTH, max_iter=200, tol=1e-3).fit(embeddings / scale, gold)
    weights, bias = found.coef_ / scale, found.intercept_
    if n_labels == 2:
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return weights.astype(np.float32), bias.astype(np.float32)
