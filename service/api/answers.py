"""From raw exit outputs to the documents that are sent: results, envelopes, the entries of `/v1/models`.

Numbers stay numpy float32 where they are many; orjson writes them in their shortest form.
"""

import base64
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import orjson

from service.api.loading import Served
from service.api.problems import problem
from service.api.schemas import ClassifyBody, EmbedBody
from service.api.students import Family
from service.bundle.manifest import Manifest
from service.errors import FieldProblem, RunFailed, ServiceError
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy, binary_embedding, embedding_answer, int8_embedding, label_answer
from service.runtime.student import Outcome


class Answered(NamedTuple):
    """One item's end: what was read of it, or None where that failed, and its outcome or error."""

    encoded: Encoded | None
    end: Outcome | ServiceError


# subtle: what calling the class does, without a frame for each item: every text answered is one
answered: Callable[[tuple[Encoded | None, Outcome | ServiceError]], Answered] = partial(tuple.__new__, Answered)


class Timing(NamedTuple):
    """Of one request, in seconds: its items' longest wait and longest computation, and all of it."""

    queue_s: float
    compute_s: float
    total_s: float


def results(served: Served, body: ClassifyBody | EmbedBody, items: Sequence[Answered]) -> list[dict[str, Any]]:
    """One result for each item, in order; a failed item's holds its `error`.

    Raises: ServiceError: an item failed and the request wants to fail as a whole.
    """
    manifest = served.manifest
    if not isinstance(body, ClassifyBody) or body.top_k is not None:
        return [_result(manifest, body, place, item) for place, item in enumerate(items)]
    labels, leaves = manifest.labels, [(leave.id, leave.depth) for leave in manifest.exits]
    written: list[dict[str, Any]] = []
    for place, item in enumerate(items):
        encoded, end = item
        if not isinstance(end, Outcome) or end.likeliest is None or encoded is None or encoded.kept < encoded.tokens:
            written.append(_result(manifest, body, place, item))
            continue
        # the usual result, in a third of the time
        exit_id, depth = leaves[end.exit_index]
        written.append({"label": labels[end.likeliest], "score": end.probability, "exit": exit_id, "depth": depth})
    return written


def _result(manifest: Manifest, body: ClassifyBody | EmbedBody, place: int, item: Answered) -> dict[str, Any]:
    end = item.end
    try:
        if isinstance(end, ServiceError):
            raise _located(place, end)
        document = _embed(body, end) if isinstance(body, EmbedBody) else _classify(manifest, body, end)
    except ServiceError as error:
        if body.on_error == "fail":
            raise
        return {"error": problem(error)}
    leave = manifest.exits[end.exit_index]
    document["exit"], document["depth"] = leave.id, leave.depth
    if item.encoded is not None and item.encoded.truncated:
        document["truncated"] = {"kept": item.encoded.kept, "dropped": item.encoded.dropped}
    return document


def _classify(manifest: Manifest, body: ClassifyBody, outcome: Outcome) -> dict[str, Any]:
    if outcome.likeliest is not None and body.top_k is None:
        return {"label": manifest.labels[outcome.likeliest], "score": outcome.probability}
    temperature = manifest.exits[outcome.exit_index].answer_temperature
    answer = label_answer(outcome.raw, temperature=temperature, labels=manifest.labels, top_k=body.top_k or 0)
    document: dict[str, Any] = {"label": answer.label, "score": answer.score}
    if body.top_k is not None:
        document["labels"] = [{"label": one.label, "score": one.score} for one in answer.labels]
    return document


def _embed(body: EmbedBody, outcome: Outcome) -> dict[str, Any]:
    normalize = body.normalize or body.encoding == "int8"
    vector = embedding_answer(outcome.raw, dimensions=body.dimensions, normalize=normalize)
    if body.encoding == "base64":
        return {"embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")}
    if body.encoding == "int8":
        return {"embedding": int8_embedding(vector)}
    if body.encoding == "binary":
        return {"embedding": binary_embedding(vector)}
    return {"embedding": np.ascontiguousarray(vector)}


def envelope(
    served: Served, policy: ExitPolicy, items: Sequence[Answered], timing: Timing, written: list[dict[str, Any]]
) -> bytes:
    """The whole answer as JSON."""
    space = {} if served.manifest.space_id is None else {"space_id": served.manifest.space_id}
    tokens = sum([item.encoded.kept for item in items if item.encoded is not None])
    return as_json(enveloped(served, policy, tokens, timing, written) | space)


def enveloped(
    served: Served, policy: ExitPolicy, tokens: int, timing: Timing, written: list[dict[str, Any]]
) -> dict[str, Any]:
    """The fields that every answer has."""
    return {
        "model": served.name,
        "version": served.version,
        "results": written,
        "exit": {"risk_requested": policy.risk_requested, "risk_applied": policy.risk_applied},
        "usage": {"tokens": tokens},
        "timing_ms": {
            "queue": _milliseconds(timing.queue_s),
            "compute": _milliseconds(timing.compute_s),
            "total": _milliseconds(timing.total_s),
        },
    }


def as_json(document: dict[str, Any]) -> bytes:
    """The bytes to send; numpy arrays are lists of numbers."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _milliseconds(seconds: float) -> float:
    # subtle: what `round(seconds * 1e3, 3)` gives, in a third of its time
    return int(seconds * 1e6 + 0.5) / 1e3


def _located(place: int, error: ServiceError) -> ServiceError:
    """The same error; where the input itself broke the graph, with a pointer to the input."""
    if isinstance(error, RunFailed):
        return RunFailed(error.detail, errors=(FieldProblem(f"/inputs/{place}", error.detail),))
    return error


def family_document(family: Family) -> dict[str, Any]:
    """A student's entry of `/v1/models`: OpenAI's fields, then what is served."""
    production = family.production
    return {
        "id": family.name,
        "object": "model",
        "created": max((_timestamp(served) for served in family.versions.values()), default=0),
        "owned_by": "understudy",
        "task": next((served.manifest.task for served in family.versions.values()), None),
        "production": None if production is None else production.version,
        "aliases": {alias: served.version for alias, served in sorted(family.aliases.items())},
        "versions": [served.card for served in family.versions.values()],
        "refused": [{"version": refusal.version, "error": refusal.error} for refusal in family.refused],
    }


def _timestamp(served: Served) -> int:
    """When a version was made, in Unix seconds; 0 where its manifest does not say so in ISO 8601."""
    try:
        return int(datetime.fromisoformat(served.manifest.provenance.created).timestamp())
    except ValueError:
        return 0
