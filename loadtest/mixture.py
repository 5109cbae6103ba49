"""A scenario's mixture as requests: texts in random order, bodies, headers, and what the answers are held against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import orjson

from loadtest import arrivals
from loadtest.arrivals import Moments
from loadtest.errors import ScenarioInvalid
from loadtest.scenario import Arrivals, Kind, Scenario, expand
from loadtest.shots import Assigned, Cycle, Judgement, Shot, Shots
from loadtest.texts import RecordedText, Text, read_recording, read_texts
from loadtest.wire import Origin, origin_of, request_bytes

MOST_BUILT = 8192
_FIELDS = {"classify": "inputs", "embed": "inputs", "rank": "passages"}


@dataclass(frozen=True, slots=True)
class Template:
    """What all requests of a kind share. `headers`: those of the scenario, expanded, and the kind's own."""

    kind: Kind
    place: int
    origin: Origin
    headers: Mapping[str, str]

    def shot(self, texts: Sequence[Text], query: Text | None = None) -> Shot:
        """The request of some texts."""
        raw = request_bytes(self.origin, self._path(), orjson.dumps(self._body(texts, query)), headers=self.headers)
        return Shot(raw, self.place, len(texts), self._judge(texts))

    def _path(self) -> str:
        return self.kind.path or f"/v1/{self.kind.task}"

    def _body(self, texts: Sequence[Text], query: Text | None) -> dict[str, Any]:
        kind = self.kind
        alone = len(texts) == 1 and kind.task != "rank"
        inputs: Any = texts[0].text if alone else [text.text for text in texts]
        body = dict(kind.body) | {kind.field or _FIELDS[kind.task]: inputs}
        if query is not None:
            body["query"] = query.text
        if kind.deadline_ms is not None and kind.path is None:
            body["deadline_ms"] = kind.deadline_ms
        return body

    def _judge(self, texts: Sequence[Text]) -> partial[Judgement] | None:
        if self.kind.task != "classify" or all(text.label is None for text in texts):
            return None
        return partial(judge_labels, tuple(text.label for text in texts))


def judge_labels(labels: Sequence[str | None], body: bytes) -> Judgement:
    """Hold a native classify answer against the data's labels; a result that failed is wrong.

    >>> judge_labels(["a", None], b'{"results": [{"label": "a"}, {"label": "b"}]}')
    Judgement(right=1, judged=1)
    """
    try:
        found = [result.get("label") for result in orjson.loads(body)["results"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        found = []
    found += [None] * (len(labels) - len(found))
    pairs = [(said, label) for said, label in zip(found, labels, strict=False) if label is not None]
    return Judgement(sum(said == label for said, label in pairs), len(pairs))


def templates(scenario: Scenario, environ: Mapping[str, str]) -> tuple[Template, ...]:
    """One for each kind. Raises: ScenarioInvalid: the target's URL, or a header's variable."""
    origin, shared = origin_of(scenario.target), expand(scenario.headers, environ)
    return tuple(
        Template(kind, place, origin, shared | _own_headers(kind)) for place, kind in enumerate(scenario.mixture)
    )


def _own_headers(kind: Kind) -> dict[str, str]:
    headers: dict[str, str] = {} if kind.priority is None else {"x-priority": kind.priority}
    if kind.deadline_ms is not None and kind.path is not None:
        headers["x-request-deadline-ms"] = f"{kind.deadline_ms:g}"
    return headers


def build(template: Template, *, seed: int, most: int = MOST_BUILT) -> list[Shot]:
    """A kind's requests, its texts shuffled anew for every pass over them.

    One pass where a request holds one text; else so many passes that texts meet in different company.

    Raises: TextsInvalid: a file cannot be used.
    """
    kind = template.kind
    rng = np.random.default_rng([seed, template.place])
    texts, size = read_texts(kind.texts), kind.inputs_per_request
    queries = read_texts(kind.queries) if kind.queries is not None else None
    passes = 1 if size == 1 else 8
    wanted = min(most, math.ceil(len(texts) * passes / size))
    endless = chain.from_iterable(
        rng.permutation(len(texts)).tolist() for _ in range(math.ceil(wanted * size / len(texts)))
    )
    drawn = [[texts[i] for i in islice(endless, size)] for _ in range(wanted)]
    asked = [None if queries is None else queries[int(rng.integers(len(queries)))] for _ in drawn]
    return [template.shot(own, query) for own, query in zip(drawn, asked, strict=True)]


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that is decided before a run. `moments`: None for a closed loop."""

    moments: Moments | None
    shots: Shots


def load_of(scenario: Scenario, wanted: Sequence[Template], *, seed: int) -> Load:
    """The requests of a run and their moments, warm-up included.

    Raises: ScenarioInvalid, TextsInvalid: the scenario or its files.
    """
    if scenario.arrivals.trace is not None:
        return _played(scenario, wanted, seed)
    built = [build(template, seed=seed) for template in wanted]
    seconds = scenario.warm_up_s + scenario.duration_s
    moments = moments_of(scenario.arrivals, seconds, seed=seed)
    if moments is None and len(built) == 1:
        return Load(None, Cycle(built[0]))
    count = MOST_BUILT if moments is None else len(moments)
    return Load(moments, Assigned(_drawn_kinds(scenario, count, seed), built))


def _drawn_kinds(scenario: Scenario, count: int, seed: int) -> Any:
    weights = np.array([kind.weight for kind in scenario.mixture])
    return np.random.default_rng([seed, 1 << 20]).choice(len(weights), size=count, p=weights / weights.sum())


def moments_of(how: Arrivals, seconds: float, *, seed: int) -> Moments | None:
    """When requests leave; None for a closed loop. Not for recordings."""
    if how.poisson is not None:
        return arrivals.poisson(how.poisson.rate_per_s, seconds, seed=seed)
    if how.constant is not None:
        return arrivals.constant(how.constant.rate_per_s, seconds)
    if how.bursts is not None:
        shape = how.bursts.model_dump(exclude={"rate_per_s"})
        return arrivals.bursts(how.bursts.rate_per_s, seconds, **shape, seed=seed)
    return None


def _played(scenario: Scenario, wanted: Sequence[Template], seed: int) -> Load:
    trace = scenario.arrivals.trace
    assert trace is not None
    rows = read_recording(trace.file)
    seconds = scenario.warm_up_s + scenario.duration_s
    moments = arrivals.recorded([row.at_s for row in rows], seconds, speed=trace.speed)
    kinds = _drawn_kinds(scenario, len(moments), seed).tolist()
    places = {template.kind.name: place for place, template in enumerate(wanted)}
    shots = [
        wanted[_place_of(row, places, drawn)].shot([Text(row.text)]) for row, drawn in zip(rows, kinds, strict=False)
    ]
    return Load(moments, Cycle(shots))


def _place_of(row: RecordedText, places: Mapping[str, int], drawn: int) -> int:
    if row.kind is None:
        return drawn
    if row.kind not in places:
        raise ScenarioInvalid(f"the recording names kind {row.kind!r}, which the mixture has not")
    return places[row.kind]
