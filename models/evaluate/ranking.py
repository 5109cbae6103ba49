"""What a ranker reaches: against the relevant passages, against its teacher, and beside baselines.

Q queries, G passages of a query's list. Passages are ordered by score; of equal scores the earlier one comes first.
What no list holds is missed: relevant passages outside a list count in every denominator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from models.data.rank_sets import Ranking
from models.evaluate.metrics import Interval

Scores = NDArray[np.float32]
Doubles = NDArray[np.float64]

DEPTH: Final = 10
RESAMPLES: Final = 1_000
_BATCH: Final = 100


def order_of(scores: Scores) -> NDArray[np.int64]:
    """int64 [G]: the places of a list's passages, best first."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable").astype(np.int64)


def ndcg(ranking: Ranking, scores: Scores, *, depth: int = DEPTH) -> float:
    """Discounted cumulative gain of the first `depth`, ÷ that of the best order of all relevant passages.

    Source: Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418; the gain is the grade.
    """
    gains = np.asarray(ranking.grades, np.float64)[order_of(scores)][:depth]
    ideal = np.sort(np.array([*ranking.grades, *(each.label or 0.0 for each in ranking.missed)]))[::-1][:depth]
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    return float(gains @ discounts[: len(gains)] / (ideal @ discounts[: len(ideal)]))


def reciprocal_rank(ranking: Ranking, scores: Scores, *, depth: int = DEPTH) -> float:
    """1 ÷ the place of the first relevant passage, 0 where it is not among the first `depth`."""
    hits = np.flatnonzero(_relevant(ranking, scores)[:depth])
    return float(1 / (hits[0] + 1)) if len(hits) else 0.0


def average_precision(ranking: Ranking, scores: Scores) -> float:
    """The precision at each relevant passage's place, mean over all relevant ones, missed ones counting 0."""
    hits = np.flatnonzero(_relevant(ranking, scores))
    precisions = np.arange(1, len(hits) + 1) / (hits + 1)
    return float(precisions.sum() / (len(hits) + len(ranking.missed)))


def recall(ranking: Ranking, scores: Scores, *, depth: int) -> float:
    """The share of the relevant passages that are among the first `depth`."""
    found = _relevant(ranking, scores)
    return float(found[:depth].sum() / (found.sum() + len(ranking.missed)))


def _relevant(ranking: Ranking, scores: Scores) -> NDArray[np.bool_]:
    """bool [G], in order of score."""
    return (np.asarray(ranking.grades, np.float64) > 0)[order_of(scores)]


def top_overlap(first: Scores, second: Scores, *, depth: int) -> float:
    """The share of the `depth` best passages of one that are among those of the other."""
    ours, theirs = (set(order_of(scores)[:depth].tolist()) for scores in (first, second))
    return len(ours & theirs) / len(theirs)


MEASURES: Final[Mapping[str, Callable[[Ranking, Scores], float]]] = {
    "ndcg@10": ndcg,
    "mrr@10": reciprocal_rank,
    "map": average_precision,
    "recall@1": lambda ranking, scores: recall(ranking, scores, depth=1),
    "recall@5": lambda ranking, scores: recall(ranking, scores, depth=5),
    "recall@10": lambda ranking, scores: recall(ranking, scores, depth=10),
}
"""Every measure by its name, of one answered query."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two orders are, mean over all queries with at least two passages.

    best: share of queries whose best passage is the same. best_3: share of the three best that are shared.
    """

    queries: int
    best: float
    best_3: float


@dataclass(frozen=True, slots=True)
class Versus:
    """One ranker against another on the same queries, by measure, with paired bootstrap intervals (95%).

    ratio: of the means; difference: of the means.
    """

    ratio: Mapping[str, Interval]
    difference: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class RankQuality:
    """What one ranker reaches on one split.

    answered: queries with a relevant passage, over which the measures are means. versus: by the other's name.
    """

    ranker: str
    queries: int
    answered: int
    measures: Mapping[str, Interval]
    agreement: Agreement | None = None
    versus: Mapping[str, Versus] | None = None

    def value(self, measure: str) -> float:
        """A measure's mean."""
        return self.measures[measure].value


@dataclass(frozen=True, slots=True)
class Scored:
    """A ranker's scores of Q lists, float32 [G] each."""

    ranker: str
    scores: tuple[Scores, ...]


@dataclass(frozen=True, slots=True)
class RankComparison:
    """All rankers on one split: the student's variants, the teacher, the baselines."""

    split: str
    students: tuple[RankQuality, ...]
    teacher: RankQuality
    baselines: tuple[RankQuality, ...]

    def baseline(self, name: str) -> RankQuality:
        """A baseline by name. Raises: KeyError: there is none."""
        for each in self.baselines:
            if each.ranker == name:
                return each
        raise KeyError(name)


def compare_rankers(
    split: str,
    rankings: Sequence[Ranking],
    *,
    students: Sequence[Scored],
    teacher: Scored,
    baselines: Sequence[Scored] = (),
    seed: int = 0,
) -> RankComparison:
    """Measure rankers on the same lists.

    Args:
        split: its name, for people.
        rankings: Q of them, at least one with a relevant passage.
        students: each is compared with the teacher and with every baseline.
        teacher: the teacher's scores.
        baselines: measured beside them.
        seed: of the bootstrap.
    Raises: ValueError: no query has a relevant passage.
    """
    others = (teacher, *baselines)
    return RankComparison(
        split=split,
        students=tuple(rank_quality(rankings, s, teacher=teacher, against=others, seed=seed) for s in students),
        teacher=rank_quality(rankings, teacher, against=baselines, seed=seed),
        baselines=tuple(rank_quality(rankings, b, teacher=teacher, seed=seed) for b in baselines),
    )


def rank_quality(
    rankings: Sequence[Ranking],
    scored: Scored,
    *,
    teacher: Scored | None = None,
    against: Sequence[Scored] = (),
    seed: int = 0,
) -> RankQuality:
    """Measure one ranker.

    Args:
        rankings: Q of them, at least one with a relevant passage.
        scored: the ranker's scores.
        teacher: whose order its own is compared with.
        against: whose measures its own are compared with.
        seed: of the bootstrap.
    Raises: ValueError: no query has a relevant passage.
    """
    ours = _values(rankings, scored)
    return RankQuality(
        ranker=scored.ranker,
        queries=len(rankings),
        answered=len(next(iter(ours.values()))),
        measures={name: _mean(found, seed) for name, found in ours.items()},
        agreement=None if teacher is None else agreement(scored, teacher),
        versus={other.ranker: _versus(ours, _values(rankings, other), seed) for other in against} or None,
    )


def agreement(first: Scored, second: Scored) -> Agreement | None:
    """How alike two rankers order the same lists; None where no list has two passages."""
    pairs = [pair for pair in zip(first.scores, second.scores, strict=True) if len(pair[0]) > 1]
    if not pairs:
        return None
    best = [top_overlap(ours, theirs, depth=1) for ours, theirs in pairs]
    best_3 = [top_overlap(ours, theirs, depth=3) for ours, theirs in pairs]
    return Agreement(len(pairs), float(np.mean(best)), float(np.mean(best_3)))


def _values(rankings: Sequence[Ranking], scored: Scored) -> dict[str, Doubles]:
    """Each measure of every answered query."""
    answered = [(r, s) for r, s in zip(rankings, scored.scores, strict=True) if r.answered]
    if not answered:
        raise ValueError("no query has a relevant passage")
    return {name: np.array([measure(r, s) for r, s in answered]) for name, measure in MEASURES.items()}


def _mean(values: Doubles, seed: int) -> Interval:
    return _interval((values,), lambda sample, axis=-1: np.asarray(sample.mean(axis=axis)), seed)


def _versus(ours: Mapping[str, Doubles], theirs: Mapping[str, Doubles], seed: int) -> Versus:
    return Versus(
        ratio={name: _interval((found, theirs[name]), _ratio, seed) for name, found in ours.items()},
        difference={name: _interval((found, theirs[name]), _difference, seed) for name, found in ours.items()},
    )


def _ratio(ours: Doubles, theirs: Doubles, axis: int = -1) -> Doubles:
    return np.asarray(ours.mean(axis=axis) / np.maximum(theirs.mean(axis=axis), 1e-12))


def _difference(ours: Doubles, theirs: Doubles, axis: int = -1) -> Doubles:
    return np.asarray(ours.mean(axis=axis) - theirs.mean(axis=axis))


def _interval(samples: tuple[Doubles, ...], statistic: Callable[..., Doubles], seed: int) -> Interval:
    """A statistic and its 95% percentile interval, paired over the queries; of one query it is a point."""
    value = float(statistic(*samples))
    if len(samples[0]) < 2:
        return Interval(value, value, value)
    found = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
