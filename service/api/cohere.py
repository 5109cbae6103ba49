"""Rerank as Cohere (v1 and v2), Jina, Voyage, vLLM and infinity speak it: `/v2/rerank`, `/v1/rerank`, `/rerank`.

One answer serves all their clients: each reads its own fields of it. A body with `texts` is for
text-embeddings-inference, and gets that server's bare list.
"""

import math
import time
from typing import Annotated, Any

import orjson
from fastapi import FastAPI
from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api import tei
from service.api.body import object_of
from service.api.call import PRIORITY, Call
from service.api.conversation import DirectRoute, Reply, exchange_of
from service.api.dialects import speak
from service.api.loading import Served
from service.api.ranking import Ranked, Ranking
from service.api.schemas import ExitField, Passage, RankBody
from service.api.surface import Asked, Documented, Lenient, Surface, checked

SEARCH_UNIT_DOCUMENTS = 100
_DOCUMENT = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["text"]}]}


def _wrong(detail: str, *at: str | int) -> PydanticCustomError:
    return PydanticCustomError("field", "{detail}", {"detail": detail, "at": list(at)})


def _documents(value: Any) -> tuple[Passage, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("must be a list of texts or of objects with a `text`, at least one")
    return tuple(Passage(_document(item, place)) for place, item in enumerate(value))


def _document(item: Any, place: int) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise _wrong("must be a text or an object with a `text`", place)
    return text


def _unless_null(value: Any) -> Any:
    return "default" if value is None else value


class RerankBody(Lenient):
    """A request to `/v2/rerank`: what Cohere's, Jina's, Voyage's, vLLM's and infinity's clients send.

    `exit` is this service's own.
    """

    query: str
    documents: Annotated[
        tuple[Passage, ...],
        PlainValidator(_documents),
        WithJsonSchema({"type": "array", "minItems": 1, "items": _DOCUMENT}),
    ]
    model: Annotated[
        str | None, Field(max_length=256, description="May be left out where one student serves rank.")
    ] = None
    top_n: Annotated[int | None, Field(ge=1, description="List so many of the best; unset: all.")] = None
    top_k: Annotated[int | None, Field(ge=1, description="Voyage's name for `top_n`.")] = None
    return_documents: bool | None = None
    max_chunks_per_doc: Annotated[
        int | None, Field(ge=1, description="Above 1: a long document's best chunk counts, however many there are.")
    ] = None
    max_tokens_per_doc: Annotated[
        int | None,
        Field(ge=1, description="Documents are cut at the student's own limit alone; a lower one is not kept."),
    ] = None
    truncation: Annotated[bool | None, Field(description="Voyage's: false refuses documents that are too long.")] = None
    priority: Annotated[
        int | None, Field(ge=0, le=999, description="Above 0: waits for what is not. `x-priority` goes before it.")
    ] = None
    raw_scores: Annotated[bool | None, Field(description="infinity's: scores as the student computes them.")] = None
    exit: Annotated[ExitField, BeforeValidator(_unless_null)] = "default"


def add_cohere_routes(app: FastAPI) -> dict[str, DirectRoute]:
    """Register the routes. Returns: what answers each path directly."""
    surface = Surface(app, "rerank")
    for path in ("/v2/rerank", "/v1/rerank", "/rerank"):
        surface.post_direct(path, rerank, Documented("Documents by their relevance to a query", RerankBody))
    return surface.direct


async def rerank(asked: Asked) -> Reply:
    """The superset of what every client reads; for a body with `texts` TEI's list."""
    document = object_of(asked.raw)
    if "texts" in document and "documents" not in document:
        speak(asked.scope, "tei")
        return await tei.rerank(asked)
    body = checked(document, RerankBody, items="documents", max_items=asked.service.settings.max_items)
    served = asked.find(body.model, "rank")
    ranking = await asked.rank(served, _native(body), call=_call(asked, body), field="/documents")
    content = await asked.written(lambda: orjson.dumps(_answer(asked, served, body, ranking)), len(body.documents))
    return Reply(content)


def _native(body: RerankBody) -> RankBody:
    truncate = "chunk" if (body.max_chunks_per_doc or 1) > 1 else None
    return RankBody.model_construct(
        query=body.query,
        passages=body.documents,
        top_k=body.top_n or body.top_k,
        truncate="error" if body.truncation is False else truncate,
        exit=body.exit,
    )


def _call(asked: Asked, body: RerankBody) -> Call:
    call = asked.call()
    if not body.priority or PRIORITY in exchange_of(asked.scope).headers:
        return call
    return call._replace(priority="low")


def _answer(asked: Asked, served: Served, body: RerankBody, ranking: Ranking) -> dict[str, Any]:
    results = [_result(body, one) for one in ranking.results]
    return {
        # subtle: infinity's client takes no other word here
        "object": "rerank",
        "id": asked.request_id,
        "created": int(time.time()),
        "model": served.name,
        "version": served.version,
        "results": results,
        "data": results,
        "usage": {"prompt_tokens": ranking.tokens, "total_tokens": ranking.tokens},
        "meta": _meta(asked, served, body, ranking),
    }


def _result(body: RerankBody, one: Ranked) -> dict[str, Any]:
    document = {"document": {"text": one.passage.text}} if body.return_documents else {}
    return {"index": one.index, "relevance_score": one.raw if body.raw_scores else one.score} | document


def _meta(asked: Asked, served: Served, body: RerankBody, ranking: Ranking) -> dict[str, Any]:
    warnings = _warnings(served, body, ranking)
    return {
        "api_version": {"version": "1" if asked.scope["path"].startswith("/v1") else "2"},
        "billed_units": {"search_units": math.ceil(len(body.documents) / SEARCH_UNIT_DOCUMENTS)},
        "tokens": {"input_tokens": ranking.tokens},
    } | ({"warnings": warnings} if warnings else {})


def _warnings(served: Served, body: RerankBody, ranking: Ranking) -> list[str]:
    """What was done to the input, and what was asked for and is not done."""
    said = []
    cut = [one.index for one in ranking.results if one.reading.kept < one.reading.tokens]
    if cut:
        said.append(f"cut at {served.manifest.max_tokens} tokens: documents {', '.join(map(str, sorted(cut)[:16]))}")
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < served.manifest.max_tokens:
        said.append(f"max_tokens_per_doc is not kept: documents are cut at {served.manifest.max_tokens} tokens")
    return said
