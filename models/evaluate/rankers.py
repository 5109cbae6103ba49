"""The rankers that are measured: a student as it is served, its teacher, and baselines.

G passages of a query's list.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.lexical import Lexical
from models.data.rank_sets import Ranking
from models.evaluate.ranking import Scored, Scores, order_of
from models.teachers.fit import Progress
from models.teachers.labels import label
from models.teachers.teacher import Teacher
from service.runtime.encode import Text
from service.runtime.heads import never
from service.runtime.joined import JoinedPair, State, as_second, joined_feeds
from service.runtime.student import Student, TextReader, batches_by_length

_BATCH_ITEMS = 32
_SCORED_AT_ONCE = 20_000
FUSION = 60
"""The constant of the paper on reciprocal rank fusion."""

GIVEN, BM25, BI_ENCODER, TEACHER = "given", "bm25", "bi-encoder", "teacher"


def student_scores(student: Student, rankings: Sequence[Ranking], *, name: str = "") -> Scored:
    """The scores of a ranker on its exported graphs, to full depth, as the service computes them.

    Args:
        student: one that scores pairs, or one whose embeddings are compared.
        name: what the ranker is called; "": its precision.
    """
    scores_pairs = student.manifest.exits[-1].output == "score"
    return Scored(name or student.precision, (_joint if scores_pairs else _separate)(student, rankings))


def _joint(student: Student, rankings: Sequence[Ranking]) -> tuple[Scores, ...]:
    if student.apart is not None:
        return _joined(student, student.apart, rankings)
    return _lists(_outputs(student, [pair for ranking in rankings for pair in ranking.pairs]), rankings)


def _joined(student: Student, reader: TextReader, rankings: Sequence[Ranking]) -> tuple[Scores, ...]:
    """As pairs would be scored, each distinct text being read once."""
    source = student.pipeline.joins
    assert source is not None, "a student that reads texts apart joins them"
    queries = _states(student, reader, list(dict.fromkeys(each.query for each in rankings)), second=False)
    passages = _states(student, reader, list(_places(rankings)), second=True)
    found = []
    for ranking in rankings:
        pairs = [JoinedPair(queries[ranking.query], passages[passage], billed=0) for passage in ranking.passages]
        scores = np.zeros(len(pairs), np.float32)
        order = np.argsort([pair.kept for pair in pairs], kind="stable")
        for begin in range(0, len(pairs), _BATCH_ITEMS):
            places = order[begin : begin + _BATCH_ITEMS]
            feeds = joined_feeds([pairs[at] for at in places], source)
            scores[places] = student.run_padded(feeds, never(student.manifest)).raw
        found.append(scores)
    return tuple(found)


def _states(student: Student, reader: TextReader, texts: Sequence[str], *, second: bool) -> dict[str, State]:
    """What each text gives."""
    encoded = student.encoder.encode(texts)
    if second:
        encoded = [as_second(each) for each in encoded]
    states: dict[str, State] = {}
    for batch in batches_by_length(encoded, _BATCH_ITEMS):
        read = reader.read([encoded[at] for at in batch])
        states |= {texts[at]: state for at, state in zip(batch, read, strict=True)}
    return states


def _separate(student: Student, rankings: Sequence[Ranking]) -> tuple[Scores, ...]:
    places = _places(rankings)
    passages = _unit(_outputs(student, list(places)))
    queries = _unit(_outputs(student, [ranking.query for ranking in rankings]))
    return _cosines(rankings, queries, passages, places)


def _outputs(student: Student, texts: Sequence[Text]) -> Scores:
    """The last exit's raw output of each text, float32 [N, ...]."""
    found: list[Scores] = []
    order: list[int] = []
    if not texts:
        return np.zeros(0, np.float32)
    for begin in range(0, len(texts), _SCORED_AT_ONCE):
        encoded = student.encoder.encode(texts[begin : begin + _SCORED_AT_ONCE])
        for batch in batches_by_length(encoded, _BATCH_ITEMS):
            found.append(student.all_exits([encoded[at] for at in batch])[-1])
            order += [begin + at for at in batch]
    back: Scores = np.concatenate(found)[np.argsort(np.asarray(order))]
    return back


def teacher_scores(
    teacher: Teacher, rankings: Sequence[Ranking], *, directory: Path, progress: Progress | None = None
) -> Scored:
    """A cross-encoder's scores, cached by content. Raises: TeacherInvalid: one is not finite."""
    pairs = [pair for ranking in rankings for pair in ranking.pairs]
    return Scored(TEACHER, _lists(label(teacher, pairs, directory=directory, progress=progress)[:, 0], rankings))


def given_order(rankings: Sequence[Ranking]) -> Scored:
    """The order of the candidates as they came."""
    return Scored(GIVEN, tuple(-np.arange(len(ranking.passages), dtype=np.float32) for ranking in rankings))


def bm25_order(rankings: Sequence[Ranking]) -> Scored:
    """BM25 of each list's passages, with the word statistics of all the lists' distinct passages."""
    places = _places(rankings)
    index = Lexical(list(places))
    return Scored(BM25, _by_query(rankings, lambda ranking: index.scores(ranking.query), places))


def embedder_order(student: Student, rankings: Sequence[Ranking]) -> Scored:
    """The cosine of an embed student's query and passage, called by its name."""
    return Scored(student.manifest.name, _separate(student, rankings))


def fused(first: Scored, second: Scored, *, constant: int = FUSION) -> Scored:
    """Two rankers' orders as one: of each passage the sum of 1 / (`constant` + its place, from 1).

    Source: Cormack, Clarke & Büttcher 2009 (reciprocal rank fusion), doi:10.1145/1571941.1572114.
    """
    both = zip(first.scores, second.scores, strict=True)
    scores = tuple(_reciprocal(ours, constant) + _reciprocal(theirs, constant) for ours, theirs in both)
    return Scored(f"{first.ranker} + {second.ranker}", scores)


def _reciprocal(scores: Scores, constant: int) -> Scores:
    places = np.empty(len(scores), np.float32)
    places[order_of(scores)] = np.arange(1, len(scores) + 1)
    return np.asarray(1 / (constant + places), np.float32)


def bi_encoder_order(teacher: Teacher, rankings: Sequence[Ranking]) -> Scored:
    """The cosine of an encoder's mean-pooled query and passage.

    Raises: TeacherInvalid: a classifier with its own pooling.
    """
    places = _places(rankings)
    passages = _unit(teacher.embeddings(list(places)))
    queries = _unit(teacher.embeddings([ranking.query for ranking in rankings]))
    return Scored(BI_ENCODER, _cosines(rankings, queries, passages, places))


def _cosines(
    rankings: Sequence[Ranking], queries: Scores, passages: Scores, places: dict[str, int]
) -> tuple[Scores, ...]:
    """Each list's scores from unit vectors float32 [Q, D] and, by the passages' places, float32 [N, D]."""
    return tuple(
        np.asarray(passages[[places[passage] for passage in ranking.passages]] @ query, np.float32)
        for ranking, query in zip(rankings, queries, strict=True)
    )


def _places(rankings: Sequence[Ranking]) -> dict[str, int]:
    """Each distinct passage's number."""
    distinct = dict.fromkeys(passage for ranking in rankings for passage in ranking.passages)
    return {passage: at for at, passage in enumerate(distinct)}


def _by_query(
    rankings: Sequence[Ranking], score_all: Callable[[Ranking], Scores], places: dict[str, int]
) -> tuple[Scores, ...]:
    return tuple(score_all(ranking)[[places[passage] for passage in ranking.passages]] for ranking in rankings)


def _lists(flat: Scores, rankings: Sequence[Ranking]) -> tuple[Scores, ...]:
    cuts = np.cumsum([len(ranking.passages) for ranking in rankings])[:-1]
    return tuple(np.split(flat, cuts))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
