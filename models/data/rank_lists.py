"""Training lists: each query's relevant passages, hard negatives of its candidates, and random ones of its set."""

from collections.abc import Sequence

import numpy as np

from models.data.rank_sets import Ranking
from models.data.rankings import TrainQueries, query_key
from models.recipe.rank import Negatives


def training_lists(
    train: Sequence[TrainQueries], negatives: Negatives, *, positives: int, unanswered: bool, seed: int
) -> list[Ranking]:
    """One list a training query, its relevant passages first; the same arguments give the same lists.

    Args:
        train: the sets' queries.
        negatives: how many of which kind; where a query has fewer, it gets what there is.
        positives: the most relevant passages of a list, those of the highest grades.
        unanswered: whether queries without a relevant passage get a list too, of negatives alone.
        seed: decides which negatives are drawn; a query's own do not depend on the other queries.
    Returns: lists of at least two passages; `missed` is empty.
    """
    lists = []
    for each in train:
        for ranking in (*each.answered, *(each.unanswered if unanswered else ())):
            made = _list_of(ranking, each.pool, negatives, positives=positives, seed=seed)
            if len(made.passages) > 1:
                lists.append(made)
    return lists


def _list_of(ranking: Ranking, pool: Sequence[str], negatives: Negatives, *, positives: int, seed: int) -> Ranking:
    draw = np.random.default_rng([seed, int(query_key(ranking)[:15], 16)])
    graded = [*zip(ranking.passages, ranking.grades, strict=True), *((m.text, m.label or 0.0) for m in ranking.missed)]
    relevant = sorted((item for item in graded if item[1] > 0), key=lambda item: -item[1])
    known = {text for text, _ in relevant}
    candidates = [text for text, grade in graded if grade == 0 and text not in known][: negatives.among]
    hard = [candidates[at] for at in sorted(draw.permutation(len(candidates))[: negatives.hard])]
    drawn = _drawn(pool, known | set(hard), negatives.random, draw)
    chosen = relevant[:positives]
    return Ranking(
        query=ranking.query,
        passages=(*(text for text, _ in chosen), *hard, *drawn),
        grades=(*(grade for _, grade in chosen), *(0.0,) * (len(hard) + len(drawn))),
        file=ranking.file,
        line=ranking.line,
    )


def _drawn(pool: Sequence[str], barred: set[str], count: int, draw: np.random.Generator) -> list[str]:
    """`count` distinct passages of the pool, none of them barred."""
    places = draw.choice(len(pool), size=min(len(pool), count + len(barred)), replace=False) if count else ()
    return [pool[at] for at in places if pool[at] not in barred][:count]
