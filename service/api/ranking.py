"""Passages ranked for a query: scored, sorted, cut to the best, written down."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from service.api.answers import Timing, as_json, enveloped
from service.api.call import Call
from service.api.loading import Served
from service.api.passages import Reading
from service.api.problems import problem
from service.api.schemas import Passage, RankBody
from service.api.scoring import Scored, Scores, compare_embeddings, join_pairs, score_pairs
from service.api.service import Service
from service.errors import ServiceError
from service.runtime.heads import ExitPolicy, sigmoid


@dataclass(frozen=True, slots=True)
class Ranked:
    """One passage that has a score.

    Attributes:
        index: its place in the request.
        passage: its text and id.
        score: in [0, 1] for a pair scorer (the sigmoid of `raw`), a cosine in [-1, 1] for embeddings.
        raw: what the student computed; for embeddings the cosine too.
        exit, depth: where it left the student.
        reading: what was read of it (of the pair, where query and passage are one sequence).
    """

    index: int
    passage: Passage
    score: float
    raw: float
    exit: str
    depth: float
    reading: Reading


@dataclass(frozen=True, slots=True)
class Failed:
    """One passage that has none, and why."""

    index: int
    passage: Passage
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Ranking:
    """What came of a request.

    Attributes:
        results: the best first (the deeper exit, then the higher score, then the earlier in the request), cut to
            `top_k`.
        failed: passages without a score, in the request's order; `top_k` does not cut them.
        policy: the exit policy applied.
        tokens: read, special tokens included, after any cut; each chunk counts.
        query: what was read of the query; None where it is read with each passage.
        queue_s, compute_s, tokenize_s: longest wait and longest computation of an item, and what tokenizing took, in
            seconds.
    """

    results: tuple[Ranked, ...]
    failed: tuple[Failed, ...]
    policy: ExitPolicy
    tokens: int
    query: Reading | None
    queue_s: float
    compute_s: float
    tokenize_s: float


async def rank(service: Service, served: Served, body: RankBody, *, call: Call) -> Ranking:
    """Score every passage for the query, and sort them.

    Args:
        service: the app's.
        served: a rank student, or an embed student.
        body: the checked request.
        call: who asks, until when.
    Raises:
        InvalidInput: the query is too long under "error", or a passage is and the request wants to fail as a whole.
        TooLarge: the passages fall into more chunks than one request may have.
        RunFailed: the query broke the graph, or a passage did and the request wants to fail as a whole.
        Overloaded, Draining, DeadlineExceeded: the engine does not take the items.
    """
    policy = served.student.policy(body.exit)
    scores = await _scorer(served)(service, served, body, policy=policy, call=call)
    return await service.tokenizing.by_size(len(body.passages), partial(_ranking, served, body, policy, scores))


def _scorer(served: Served) -> Callable[..., Awaitable[Scores]]:
    if served.manifest.apart:
        return join_pairs
    return score_pairs if served.manifest.pairs == "joint" else compare_embeddings


def _ranking(served: Served, body: RankBody, policy: ExitPolicy, scores: Scores) -> Ranking:
    ends = list(zip(range(len(body.passages)), body.passages, scores.passages, strict=True))
    results = [_ranked(served, at, passage, end) for at, passage, end in ends if isinstance(end, Scored)]
    results.sort(key=lambda one: (-one.depth, -one.raw, one.index))
    return Ranking(
        results=tuple(results[: body.top_k]),
        failed=tuple(Failed(at, passage, end) for at, passage, end in ends if isinstance(end, ServiceError)),
        policy=policy,
        tokens=sum(one.reading.billed for one in results) + (scores.query.billed if scores.query else 0),
        query=scores.query,
        queue_s=scores.ran.queue_s,
        compute_s=scores.ran.compute_s,
        tokenize_s=scores.ran.tokenize_s,
    )


def _ranked(served: Served, index: int, passage: Passage, end: Scored) -> Ranked:
    leave = served.manifest.exits[end.exit_index]
    score = end.raw
    if leave.output == "score":
        score = float(sigmoid(np.array(end.raw), temperature=leave.temperature))
    return Ranked(index, passage, score, end.raw, leave.id, leave.depth, end.reading)


def rank_answer(served: Served, body: RankBody, ranking: Ranking, timing: Timing) -> bytes:
    """The whole answer to a rank request as JSON."""
    written = [_result(body, one) for one in ranking.results]
    written += [_named(one) | {"error": problem(one.error)} for one in ranking.failed]
    query = {} if ranking.query is None else _cut(ranking.query, "query_truncated")
    return as_json(enveloped(served, ranking.policy, ranking.tokens, timing, written) | query)


def _result(body: RankBody, one: Ranked) -> dict[str, Any]:
    document = _named(one) | {"score": one.raw if body.raw_scores else one.score}
    if body.return_text:
        document["text"] = one.passage.text
    return document | {"exit": one.exit, "depth": one.depth} | _cut(one.reading, "truncated")


def _named(one: Ranked | Failed) -> dict[str, Any]:
    return {"index": one.index} | ({} if one.passage.id is None else {"id": one.passage.id})


def _cut(reading: Reading, field: str) -> dict[str, Any]:
    chunks = {"chunks": reading.chunks} if reading.chunks > 1 else {}
    if reading.kept == reading.tokens and not chunks:
        return {}
    return {field: {"kept": reading.kept, "dropped": reading.tokens - reading.kept} | chunks}
