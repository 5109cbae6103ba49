"""The ranking teacher: an encoder that reads query and passage as one sequence and gives one score.

It is a `Teacher` with one label, so that its scores are labels like any other teacher's: cached, digested, saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import TeacherInvalid
from models.recipe.rank import RankFineTune
from models.teachers.fit import Fit, Group, Progress, all_batches, fast_matmul, fit
from models.teachers.pair_lists import PairLists, list_scores, pair_lists
from models.teachers.teacher import MeanPooled, Teacher, load_teacher
from models.teachers.tokens import Indices, Padded

# B lists, G passages of the longest list, N pairs

LABELS = ("relevance",)
"""The one label of a cross-encoder."""

_WARM_UP = 0.1
_CHECKPOINT_STEPS = 100  # a step over lists of paragraphs takes seconds
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class GradedLists:
    """Lists of pairs with their grades, 0 being not relevant."""

    pairs: tuple[tuple[Pair, ...], ...]
    grades: tuple[tuple[float, ...], ...]


def listwise_cross_entropy(scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of each list's softmax with its grades, as shares; 0 where nothing is relevant.

    Args:
        scores: float32 [B, G].
        grades: float32 [B, G], 0 or more.
        mask: bool [B, G], where a list has a passage.
    Returns: float32 [B], nats.
    Source: Cao et al. 2007 (ListNet), top one; with one relevant passage the loss of Gao et al. 2021, arXiv:2101.08751.
    """
    logs = torch.log_softmax(scores.masked_fill(~mask, -torch.inf), dim=-1).masked_fill(~mask, 0)
    wanted = grades * mask
    shares = wanted / wanted.sum(-1, keepdim=True).clamp_min(1e-9)
    return -(shares * logs).sum(-1)


def binary_cross_entropy(scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of each pair's sigmoid with whether it is relevant, mean over a list.

    Args: as `listwise_cross_entropy`.
    Returns: float32 [B], nats.
    Source: Nogueira & Cho 2019 (monoBERT), arXiv:1901.04085.
    """
    each = nn.functional.binary_cross_entropy_with_logits(scores, (grades > 0).float(), reduction="none")
    return (each * mask).sum(-1) / mask.sum(-1)


def cross_encoder(source: str | Path, *, max_tokens: int) -> Teacher:
    """A finished cross-encoder: a sequence classifier of one label, or a teacher that `fine_tune_ranker` made.

    Raises: TeacherInvalid: does not load, or has another number of labels.
    """
    teacher = load_teacher(source, max_tokens=max_tokens)
    if len(teacher.labels) != 1:
        raise TeacherInvalid(f"teacher {str(source)!r}: a ranker of pairs has one label, not {len(teacher.labels)}")
    return teacher


def fine_tune_ranker(
    source: str | Path,
    data: GradedLists,
    settings: RankFineTune,
    *,
    dev: GradedLists,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Teacher:
    """Fine-tune the encoder at `source` to score pairs.

    Args:
        source: see `load_teacher`; a bare encoder.
        data: lists of at least two pairs.
        settings: the recipe's `teacher.fine_tune`.
        dev: lists of which the share whose best-scored passage is relevant is reported after each epoch; nothing is
            chosen by it.
        checkpoint: file a killed run continues from.
        progress: told the steps done.
    Raises: TeacherInvalid: does not load, has a head of its own, or training diverged.
    """
    bare = load_teacher(source, max_tokens=settings.max_tokens)
    if not isinstance(bare.network, MeanPooled):
        raise TeacherInvalid("fine-tuning needs a bare encoder, not a sequence classifier")
    torch.manual_seed(settings.seed)
    network = MeanPooled(bare.network.encoder, nn.Linear(int(bare.config.hidden_size), 1))
    teacher = Teacher(network, bare.tokenizer_json, LABELS, max_tokens=settings.max_tokens)
    lists = pair_lists(bare.tokenizer_json, data.pairs, data.grades, max_tokens=settings.max_tokens)
    try:
        _train(teacher, lists, settings, dev=dev, checkpoint=checkpoint, progress=progress)
    except FloatingPointError as error:
        raise TeacherInvalid(f"fine-tuning the teacher diverged: {error}") from error
    return teacher


def _train(
    teacher: Teacher,
    lists: PairLists,
    settings: RankFineTune,
    *,
    dev: GradedLists,
    checkpoint: Path | None,
    progress: Progress | None,
) -> None:
    network = teacher.network
    plan = Fit(
        epochs=settings.epochs,
        batch_items=settings.batch_items,
        warm_up=_WARM_UP,
        average=settings.average,
        seed=settings.seed,
        checkpoint_steps=_CHECKPOINT_STEPS,
    )
    batches = all_batches(lists.lengths, settings=plan)
    per_epoch = -(-len(lists) // settings.batch_items)

    def score(batch: Padded) -> Tensor:
        with fast_matmul():
            logits: Tensor = network(batch)
        return logits[:, 0]

    def loss(rows: Indices) -> Tensor:
        return _loss(list_scores(score, lists, rows), lists.table(rows, lists.grades), lists.mask(rows), settings)

    def look(done: int) -> None:
        if progress is not None:
            progress(done, len(batches), f"dev accuracy at 1 {best_is_relevant(teacher, dev):.4f}")

    def after_step(done: int) -> None:
        if done % per_epoch == 0 and done < len(batches):
            look(done)

    network.train()
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
    network.eval()
    look(len(batches))


def _loss(scores: Tensor, grades: Tensor, mask: Tensor, settings: RankFineTune) -> Tensor:
    kinds = {"listwise": listwise_cross_entropy, "binary": binary_cross_entropy}
    chosen = kinds.values() if settings.loss == "both" else (kinds[settings.loss],)
    return torch.stack([kind(scores, grades, mask).mean() for kind in chosen]).mean()


def best_is_relevant(teacher: Teacher, lists: GradedLists) -> float:
    """The share of lists whose best-scored passage is relevant; NaN without lists."""
    if not lists.pairs:
        return float("nan")
    was_training = teacher.network.training
    teacher.network.eval()
    scores = teacher.logits([pair for each in lists.pairs for pair in each])[:, 0]
    teacher.network.train(was_training)
    hits, begin = [], 0
    for grades in lists.grades:
        end = begin + len(grades)
        hits.append(grades[int(scores[begin:end].argmax())] > 0)
        begin = end
    return sum(hits) / len(hits)


def _groups(network: nn.Module, settings: RankFineTune) -> Sequence[Group]:
    """Matrices with weight decay; biases, norms and tables without."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = tuple(p for name, p in named if p.ndim == 2 and "embeddings" not in name)
    plain = tuple(p for name, p in named if p.ndim != 2 or "embeddings" in name)
    rate = settings.learning_rate
    return (Group(decayed, rate, settings.weight_decay), Group(plain, rate, 0.0))
