"""The scores of passages for a query: each pair run as one sequence, or both read apart and joined, or compared.

N passages, D embedding dimensions, W chunks of all passages together.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic

import numpy as np

from service.api.call import Call
from service.api.joining import state_or_error
from service.api.loading import Served
from service.api.passages import Embedded, Entry, PassageKey, Reading, Stated, passage_keys
from service.api.problems import told, wrong_field
from service.api.schemas import RankBody
from service.api.service import Service
from service.api.underway import Inference, inference_of
from service.engine.item import ItemResult
from service.errors import FieldProblem, InvalidInput, RunFailed, ServiceError, TooLarge
from service.runtime.encode import TOO_LONG, Chunked, Encoder, Text, Truncate
from service.runtime.heads import ExitPolicy, Floats, cosines, unit_rows
from service.runtime.joined import JoinedPair, State, as_second
from service.runtime.student import Outcome

Ends = Sequence[Outcome | ServiceError]


@dataclass(frozen=True, slots=True)
class Scored:
    """A passage's raw score, the exit it came from, and what was read."""

    raw: float
    exit_index: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Scores:
    """Of every passage, in the request's order, with what was read of the query where that is read alone."""

    passages: Sequence[Scored | ServiceError]
    query: Reading | None
    ran: Inference


async def score_pairs(service: Service, served: Served, body: RankBody, *, policy: ExitPolicy, call: Call) -> Scores:
    """Run the query with each passage; of a passage in chunks the highest score counts.

    Raises: as `ranking.rank`.
    """
    pairs = [(body.query, text) for text in ("", *(passage.text for passage in body.passages))]
    (_, *read), tokenize_s = await _read(service, served, body, pairs, call)
    refused = _refusals(service, served, body, read)
    taken = [one for at, one in enumerate(read) if at not in refused]
    ran = await _run(service, served, taken, policy=policy, call=call, tokenize_s=tokenize_s)
    scored = iter(await service.tokenizing.by_size(len(taken), partial(_scored, taken, ran)))
    scores = [refused[at] if at in refused else next(scored) for at in range(len(read))]
    return Scores(_settled(body, scores), None, ran)


def _scored(read: Sequence[Chunked], ran: Inference) -> list[Scored | ServiceError]:
    return [_best(ends, _reading(one)) for one, ends in zip(read, _grouped(ran, read), strict=True)]


def _best(ends: Ends, reading: Reading) -> Scored | ServiceError:
    best: Scored | None = None
    for end in ends:
        if isinstance(end, ServiceError):
            return end
        raw = float(end.raw)
        if not np.isfinite(raw):
            return RunFailed("the student computed no finite score for this passage")
        if best is None or raw > best.raw:
            best = Scored(raw, end.exit_index, reading)
    assert best is not None, "a passage has at least one piece"
    return best


async def compare_embeddings(
    service: Service, served: Served, body: RankBody, *, policy: ExitPolicy, call: Call
) -> Scores:
    """The cosines of the passages' embeddings with the query's; known passages are not computed again.

    Raises: as `ranking.rank`.
    """
    fresh = await _read_new(service, served, body, Embedded, call)
    read = [fresh.query, *fresh.taken.values()]
    ran = await _run(service, served, read, policy=policy, call=call, tokenize_s=fresh.tokenize_s)
    (asked,), *ends = _grouped(ran, read)
    vector = _query_vector(asked)
    made = await service.tokenizing.by_size(len(fresh.taken), partial(_embedded, fresh.taken, ends))
    _remember(service, served, made)
    compared = await service.tokenizing.by_size(len(fresh.keys), partial(_compared, vector, {**fresh.known, **made}))
    scores = [fresh.refused.get(at) or compared[key] for at, key in enumerate(fresh.keys)]
    return Scores(_settled(body, scores), _reading(fresh.query), ran)


async def join_pairs(service: Service, served: Served, body: RankBody, *, policy: ExitPolicy, call: Call) -> Scores:
    """Read the query and the passages that are not known yet, each by itself, then join the query with each passage.

    Of a passage in chunks the highest score counts.

    Raises: as `ranking.rank`.
    """
    fresh = await _read_new(service, served, body, Stated, call)
    with service.halves(served, _billed(fresh), policy=policy, call=call) as halves:
        pieces = [piece for one in (fresh.query, *fresh.taken.values()) for piece in one.pieces]
        first = await halves.read(pieces)
        asked, *ends = (result.outcome for result in first)
        state = _query_state(asked)
        made = _stated(fresh.taken, iter(ends))
        _remember(service, served, made)
        entries = {**fresh.known, **made}
        stood = {key: one for key, one in entries.items() if isinstance(one, Stated)}
        pairs = [
            JoinedPair(state, chunk, billed=tokens)
            for one in stood.values()
            for chunk, tokens in zip(one.states, one.billed, strict=True)
        ]
        second = await halves.join(pairs)
    each = await service.tokenizing.by_size(len(stood), partial(_joined, stood, second))
    joined = dict(zip(stood, each, strict=True))
    scores = [fresh.refused.get(at) or joined.get(key) or _error(entries[key]) for at, key in enumerate(fresh.keys)]
    ran = inference_of((), first, second, policy=policy, tokenize_s=fresh.tokenize_s)
    return Scores(_settled(body, scores), _reading(fresh.query), ran)


@dataclass(frozen=True, slots=True)
class _Fresh(Generic[Entry]):
    """A request's query and passages: their keys, what is known, what is to be run, who (by place) is refused."""

    keys: Sequence[PassageKey]
    known: Mapping[PassageKey, Entry]
    query: Chunked
    taken: Mapping[PassageKey, Chunked]
    refused: Mapping[int, ServiceError]
    tokenize_s: float


def _billed(fresh: _Fresh[Stated]) -> list[int]:
    """Of each pair its tokens: the passage's, known or not."""
    known = [tokens for one in fresh.known.values() for tokens in one.billed]
    return known + [piece.billed for one in fresh.taken.values() for piece in one.pieces]


async def _read_new(service: Service, served: Served, body: RankBody, kind: type[Entry], call: Call) -> _Fresh[Entry]:
    """Tokenize the query and the passages of which nothing of the kind is kept. Raises: as `ranking.rank`."""
    texts = [passage.text for passage in body.passages]
    keys = await service.tokenizing.by_size(len(texts), partial(passage_keys, texts, truncation(service, body)))
    known: dict[PassageKey, Entry] = service.passages.get(served.handle, keys, kind)
    new: dict[PassageKey, str] = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    (query, *each), tokenize_s = await _read(service, served, body, [body.query, *new.values()], call)
    read = dict(zip(new, each, strict=True))
    refused = _refusals(service, served, body, [read.get(key) for key in keys])
    too_long = {keys[at] for at in refused}
    taken = {key: one for key, one in read.items() if key not in too_long}
    return _Fresh(keys, known, query, taken, refused, tokenize_s)


def _remember(service: Service, served: Served, made: Mapping[PassageKey, Embedded | Stated | ServiceError]) -> None:
    """Keep what passages gave, as long as their version is in service."""
    if service.students.serves(served):
        service.passages.put(
            served.handle, ((key, one) for key, one in made.items() if not isinstance(one, ServiceError))
        )


def _query_state(end: Outcome | ServiceError) -> State:
    """What the query gave. Raises: ServiceError: nothing."""
    if isinstance(end, RunFailed):
        detail = "the student could not read the query"
        raise RunFailed(detail, errors=(FieldProblem("/query", detail),)) from end
    if isinstance(end, ServiceError):
        raise end
    return end.raw


def _stated(
    read: Mapping[PassageKey, Chunked], ends: Iterator[Outcome | ServiceError]
) -> dict[PassageKey, Stated | ServiceError]:
    return {key: _states(one, [next(ends) for _ in one.pieces]) for key, one in read.items()}


def _states(read: Chunked, ends: Ends) -> Stated | ServiceError:
    states: list[State] = []
    for end in ends:
        state = state_or_error(end)
        if isinstance(state, ServiceError):
            return state
        states.append(state)
    return Stated(tuple(states), tuple(piece.billed for piece in read.pieces), _reading(read))


def _joined(entries: Mapping[PassageKey, Stated], ran: Sequence[ItemResult]) -> list[Scored | ServiceError]:
    ends = iter(result.outcome for result in ran)
    return [_best([next(ends) for _ in one.states], one.reading) for one in entries.values()]


def _error(entry: Stated | ServiceError) -> ServiceError:
    assert isinstance(entry, ServiceError), "what was read was joined"
    return entry


def _query_vector(end: Outcome | ServiceError) -> Floats:
    """float32 [D], of length 1. Raises: ServiceError: there is none."""
    if isinstance(end, RunFailed) or (isinstance(end, Outcome) and not np.isfinite(end.raw).all()):
        detail = "the student computed no finite embedding for the query"
        raise RunFailed(detail, errors=(FieldProblem("/query", detail),))
    if isinstance(end, ServiceError):
        raise end
    return np.asarray(unit_rows(end.raw[None])[0])


def _embedded(read: Mapping[PassageKey, Chunked], ends: Sequence[Ends]) -> dict[PassageKey, Embedded | ServiceError]:
    return {key: _embedding(of, _reading(one)) for (key, one), of in zip(read.items(), ends, strict=True)}


def _embedding(ends: Ends, reading: Reading) -> Embedded | ServiceError:
    outcomes: list[Outcome] = []
    for end in ends:
        if isinstance(end, ServiceError):
            return end
        outcomes.append(end)
    # subtle: a copy, since a row of a batch would keep the whole batch in memory as long as it is cached
    raw = np.array([outcome.raw for outcome in outcomes], dtype=np.float32)
    if not np.isfinite(raw).all():
        return RunFailed("the student computed no finite embedding for this passage")
    return Embedded(unit_rows(raw), outcomes[0].exit_index, reading)


def _compared(
    query: Floats, passages: Mapping[PassageKey, Embedded | ServiceError]
) -> dict[PassageKey, Scored | ServiceError]:
    """The highest cosine of each passage's chunks."""
    entries = [one for one in passages.values() if isinstance(one, Embedded)]
    best: list[float] = []
    if entries:
        starts = np.cumsum([0, *(len(one.vectors) for one in entries[:-1])])
        each = cosines(query, np.concatenate([one.vectors for one in entries]))
        best = np.maximum.reduceat(each, starts).tolist()
    scores = iter(best)
    return {
        key: Scored(next(scores), one.exit_index, one.reading) if isinstance(one, Embedded) else one
        for key, one in passages.items()
    }


def truncation(service: Service, body: RankBody) -> str:
    """What is done with passages that are too long."""
    return body.truncate or service.settings.default_truncate


class _Reader:
    """Tokenizes a request's texts, of which the first is the query, or is read with it alone, and is never in chunks.

    Owner: one tokenizing thread at a time.
    """

    def __init__(self, encoder: Encoder, truncate: str, *, most_pieces: int, apart: bool) -> None:
        """Read nothing yet.

        Args:
            most_pieces: of all texts but the first.
            apart: whether all but the first are the second texts of pairs.
        """
        self._encoder, self._truncate, self._most_pieces, self._apart = encoder, truncate, most_pieces, apart
        self._pieces = 0

    def __call__(self, texts: Sequence[Text], first: int) -> list[Chunked]:
        """Some of the texts, `first` being the place of the first of them. Raises: TooLarge."""
        plain = len(texts) if self._truncate != "chunk" else int(first == 0)
        cut: Truncate = "start" if self._truncate == "start" else "end"
        whole = self._encoder.encode(texts[:plain], truncate=cut)
        read = [Chunked((one,), tokens=one.tokens, kept=one.kept) for one in whole]
        read += self._encoder.encode_chunks(texts[plain:])
        self._pieces += sum(len(one.pieces) for one in read) - int(first == 0)
        if self._pieces > self._most_pieces:
            raise TooLarge(f"the passages fall into more than {self._most_pieces} chunks")
        if self._apart:
            query = int(first == 0)
            read[query:] = [replace(one, pieces=tuple(map(as_second, one.pieces))) for one in read[query:]]
        return read


async def _read(
    service: Service, served: Served, body: RankBody, texts: Sequence[Text], call: Call
) -> tuple[list[Chunked], float]:
    """Tokenize the query and whatever else is to be run.

    Returns: what was read of each, and the seconds it took.
    Raises: InvalidInput: the query alone is too long.
    """
    truncate = truncation(service, body)
    most, apart = service.settings.max_queue_items, served.manifest.apart > 0
    reader = _Reader(served.student.encoder, truncate, most_pieces=most, apart=apart)
    began = time.monotonic()
    # of pairs the query is no item of its own
    items = len(texts) if served.manifest.pairs == "none" else len(texts) - 1
    read = await service.tokenize(served, texts, reader, call=call, items=items)
    tokenize_s = time.monotonic() - began
    if truncate == "error" and read[0].kept < read[0].tokens:
        raise wrong_field("/query", _too_long(served, read[0]))
    return read, tokenize_s


def _too_long(served: Served, read: Chunked) -> str:
    return f"{read.tokens} tokens, more than the {served.manifest.max_tokens} this student takes"


def _refusals(
    service: Service, served: Served, body: RankBody, read: Sequence[Chunked | None]
) -> dict[int, ServiceError]:
    """The passages (by place) that may not be cut and would have to be.

    Args:
        read: of each passage; None: it is known already.
    Raises: InvalidInput: there are some, and the request wants to fail as a whole.
    """
    if truncation(service, body) != "error":
        return {}
    long = {at: _too_long(served, one) for at, one in enumerate(read) if one and one.kept < one.tokens}
    problems = {at: FieldProblem(f"/passages/{at}", detail) for at, detail in long.items()}
    if problems and body.on_error == "fail":
        raise InvalidInput(TOO_LONG, errors=told(list(problems.values())))
    return {at: InvalidInput(problem.detail, errors=(problem,)) for at, problem in problems.items()}


async def _run(
    service: Service, served: Served, read: Sequence[Chunked], *, policy: ExitPolicy, call: Call, tokenize_s: float
) -> Inference:
    pieces = [piece for one in read for piece in one.pieces]
    return await service.run(served, pieces, policy=policy, call=call, tokenize_s=tokenize_s)


def _grouped(ran: Inference, read: Sequence[Chunked]) -> list[list[Outcome | ServiceError]]:
    """What came of each text's pieces."""
    ends = iter(item.end for item in ran.items)
    return [[next(ends) for _ in one.pieces] for one in read]


def _settled(body: RankBody, scores: Sequence[Scored | ServiceError]) -> Sequence[Scored | ServiceError]:
    """The scores, the passages that broke the graph named. Raises: ServiceError: the request fails as a whole."""
    settled = [
        RunFailed(one.detail, errors=(FieldProblem(f"/passages/{at}", one.detail),))
        if isinstance(one, RunFailed)
        else one
        for at, one in enumerate(scores)
    ]
    failed = next((one for one in settled if isinstance(one, ServiceError)), None)
    if failed is not None and body.on_error == "fail":
        raise failed
    return settled


def _reading(read: Chunked) -> Reading:
    return Reading(read.tokens, read.kept, len(read.pieces), sum(piece.kept for piece in read.pieces))
