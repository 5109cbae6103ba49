"""OpenAI's embeddings: `POST /v1/embeddings`, and `/embeddings` for clients whose base URL has no `/v1`.

Base64 is the hot path: it is what openai-python asks for when its caller says nothing.
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI
from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api.body import object_of
from service.api.conversation import DirectRoute, Reply
from service.api.loading import Served
from service.api.schemas import EmbedBody, ExitField, Truncation
from service.api.surface import (
    Asked,
    Documented,
    Lenient,
    Surface,
    checked,
    outcomes,
    tokens_of,
    truncated_of,
)
from service.api.underway import Inference
from service.runtime.heads import embedding_answer

TOKEN_IDS = (
    "token ids are not taken, since they are another model's: send texts "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)


def _wrong(detail: str, *at: int) -> PydanticCustomError:
    return PydanticCustomError("field", "{detail}", {"detail": detail, "at": list(at)})


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise _wrong("must be a text or a list of texts")
    if not value:
        raise _wrong("must hold at least one text")
    for place, item in enumerate(value):
        if not isinstance(item, str):
            raise _wrong(TOKEN_IDS) if isinstance(item, int | list) else _wrong("must be a text", place)
    return tuple(value)


Input = Annotated[
    tuple[str, ...],
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}),
    Field(description="One text, or several. Token ids are refused."),
]


class EmbeddingsBody(Lenient):
    """A request to `/v1/embeddings`. `exit` and `truncate` are this service's own (openai-python: `extra_body`)."""

    input: Input
    model: Annotated[
        str | None, Field(max_length=256, description="May be left out where one student serves embed.")
    ] = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(ge=1)] = None
    user: Any = None
    exit: ExitField = "default"
    truncate: Truncation = None


def add_openai_routes(app: FastAPI) -> dict[str, DirectRoute]:
    """Register the routes. Returns: what answers each path directly."""
    surface = Surface(app, "OpenAI")
    for path in ("/v1/embeddings", "/embeddings"):
        summary = "An embedding of each text, in OpenAI's shape"
        surface.post_direct(path, embeddings, Documented(summary, EmbeddingsBody, shown=path.startswith("/v1")))
    return surface.direct


async def embeddings(asked: Asked) -> Reply:
    """OpenAI's list of embeddings."""
    body = _body(asked)
    return await answer_embeddings(asked, asked.find(body.model, "embed"), body)


def _body(asked: Asked) -> EmbeddingsBody:
    document = object_of(asked.raw)
    return checked(document, EmbeddingsBody, items="input", max_items=asked.service.settings.max_items)


async def embeddings_of(asked: Asked, served: Served) -> Reply:
    """The same from a student that the path chose; the body's `model` is not looked at."""
    return await answer_embeddings(asked, served, _body(asked))


async def answer_embeddings(asked: Asked, served: Served, body: EmbeddingsBody) -> Reply:
    """Run a checked body and write its answer."""
    native = EmbedBody.model_construct(
        inputs=body.input, dimensions=body.dimensions, exit=body.exit, truncate=body.truncate
    )
    inference = await asked.infer(served, native, field="/input")
    return Reply(await asked.written(lambda: _document(served, body, inference), len(inference.items)))


def _document(served: Served, body: EmbeddingsBody, inference: Inference) -> bytes:
    tokens = tokens_of(inference)
    document = {
        "object": "list",
        "data": _data(body, inference),
        "model": served.name,
        "version": served.version,
        "space_id": served.manifest.space_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _data(body: EmbeddingsBody, inference: Inference) -> Sequence[dict[str, Any]]:
    vectors = (embedding_answer(one.raw, dimensions=body.dimensions) for one in outcomes(inference, field="/input"))
    if body.encoding_format == "base64":
        wanted: list[Any] = [
            base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii") for vector in vectors
        ]
    else:
        wanted = list(vectors)
    return [
        {"object": "embedding", "index": index, "embedding": embedding} | truncated
        for index, (embedding, truncated) in enumerate(zip(wanted, truncated_of(inference), strict=True))
    ]
