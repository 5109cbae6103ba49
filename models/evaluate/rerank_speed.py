"""The time of re-ranking a query's candidates: a ranker that keeps passages, cold and with known ones, and its teacher.

Both sides get ids that are already there, one thread on one pinned core, candidates in batches of like length; repeats
are interleaved, so that a slow moment of the machine meets every side.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

from models.errors import DataInvalid
from models.evaluate.speed import BATCH_ITEMS, REPEATS
from service.runtime.encode import Encoded, pad
from service.runtime.heads import never
from service.runtime.joined import JoinedPair, State, as_second, joined_feeds
from service.runtime.student import Student, TextReader, batches_by_length

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and its candidates."""

    query: str
    passages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reranking:
    """One side: `seconds` one a repeat, over all queries; `passages` all their candidates together."""

    contender: str
    passages: int
    queries: int
    seconds: tuple[float, ...]

    @property
    def ms_a_query(self) -> float:
        """By the median repeat."""
        return 1000 * statistics.median(self.seconds) / self.queries


@dataclass(frozen=True, slots=True)
class RerankReport:
    """All sides, and what a kept passage takes."""

    sides: tuple[Reranking, ...]
    tokens_a_passage: float
    bytes_a_token: float

    @property
    def bytes_a_passage(self) -> float:
        """On average; of a student that keeps one vector, however long a passage is."""
        return self.bytes_a_token * self.tokens_a_passage

    def ratio(self, contender: str, baseline: str) -> float:
        """How many times as fast `contender` is. Raises: KeyError: one of them was not timed."""
        found = {side.contender: statistics.median(side.seconds) for side in self.sides}
        return found[baseline] / found[contender]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A query's ids, its passages' ids, and their states as a cache would hold them."""

    query: Encoded
    passages: Sequence[Encoded]
    states: Sequence[State]


def rerank_speed(
    student: Student,
    teachers: Sequence[Student],
    asked: Sequence[Asked],
    *,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> RerankReport:
    """Time the student cold and warm, and each teacher. Call it inside `speed.pinned`.

    Args:
        student: a ranker that reads texts apart, loaded with one thread.
        teachers: rankers that read a pair as one sequence, each under its precision.
        asked: at least one query with at least one candidate.
    Raises: DataInvalid: there is nothing to rank, or a side is no such ranker.
    """
    if not any(each.passages for each in asked):
        raise DataInvalid("there is no query with candidates")
    reader = student.apart
    if reader is None:
        raise DataInvalid(f"{student.manifest.name} reads a pair as one sequence, so it keeps no passages")
    kept = [_kept(student, reader, each) for each in asked]
    sides: list[tuple[str, Callable[[], None]]] = []
    for teacher in teachers:
        joint = [teacher.encoder.encode([(each.query, passage) for passage in each.passages]) for each in asked]
        sides.append((f"teacher {teacher.precision}", partial(_all, partial(_run_joint, teacher), joint)))
    sides.append((f"cold {student.precision}", partial(_all, partial(_run_cold, student, reader), kept)))
    sides.append((f"warm {student.precision}", partial(_all, partial(_run_warm, student, reader), kept)))
    for _, run in sides:
        run()
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    for _ in range(repeats):
        for name, run in sides:
            began = clock()
            run()
            seconds[name].append(clock() - began)
    states = [state for each in kept for state in each.states]
    tokens = sum(len(passage.input_ids) for each in kept for passage in each.passages)
    return RerankReport(
        tuple(Reranking(name, len(states), len(asked), tuple(times)) for name, times in seconds.items()),
        tokens / len(states),
        sum(state.nbytes for state in states) / tokens,
    )


def known_us(
    student: Student,
    pairs: Sequence[tuple[str, str]],
    *,
    most_pairs: int,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Microseconds a pair where all passages are known: the query is read, and joined with states that are kept.

    Call it inside `speed.pinned`.

    Args:
        student: as for `rerank_speed`.
        pairs: at least one; those of a query stand together.
        most_pairs: every k-th query is run, with about so many pairs together.
    """
    asked = [
        Asked(query, tuple(passage for _, passage in of_query))
        for query, of_query in groupby(pairs, lambda each: each[0])
    ]
    chosen = asked[:: max(1, len(pairs) // most_pairs)]
    report = rerank_speed(student, (), chosen, repeats=repeats, clock=clock)
    (warm,) = (side for side in report.sides if side.contender.startswith("warm"))
    return 1e6 * statistics.median(warm.seconds) / warm.passages


def _all(run: Callable[[T], object], items: Sequence[T]) -> None:
    for item in items:
        run(item)


def _kept(student: Student, reader: TextReader, asked: Asked) -> _Kept:
    query, *passages = student.encoder.encode([asked.query, *asked.passages])
    seconds = [as_second(passage) for passage in passages]
    return _Kept(query, seconds, _read(reader, seconds))


def _read(reader: TextReader, passages: Sequence[Encoded]) -> list[State]:
    states: dict[int, State] = {}
    for batch in batches_by_length(passages, BATCH_ITEMS):
        states |= dict(zip(batch, reader.read([passages[at] for at in batch]), strict=True))
    return [states[at] for at in range(len(passages))]


def _join(student: Student, query: State, states: Sequence[State]) -> None:
    source = student.pipeline.joins
    assert source is not None, "a ranker that reads texts apart joins states"
    order = sorted(range(len(states)), key=lambda at: len(states[at]))
    for begin in range(0, len(order), BATCH_ITEMS):
        pairs = [JoinedPair(query, states[at], billed=0) for at in order[begin : begin + BATCH_ITEMS]]
        student.run_padded(joined_feeds(pairs, source), never(student.manifest))


def _run_cold(student: Student, reader: TextReader, kept: _Kept) -> None:
    _join(student, reader.read([kept.query])[0], _read(reader, kept.passages))


def _run_warm(student: Student, reader: TextReader, kept: _Kept) -> None:
    _join(student, reader.read([kept.query])[0], kept.states)


def _run_joint(teacher: Student, pairs: Sequence[Encoded]) -> None:
    for batch in batches_by_length(pairs, BATCH_ITEMS):
        teacher.run_padded(pad([pairs[at] for at in batch], pad_id=teacher.pad_id), never(teacher.manifest))
