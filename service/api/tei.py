"""text-embeddings-inference's API under `/tei`, and at the root where `root_dialect` says so.

That protocol knows one model a server. Here `/tei` is the only student of the task that an operation needs, and
`/tei/NAME` (`NAME@alias`, `NAME@version`) is that student; huggingface_hub takes either as its model's URL, and
posts to the URL itself.
"""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import Timing
from service.api.body import object_of
from service.api.conversation import DirectRoute, Reply
from service.api.dialects import ROOT_TEI, error_response
from service.api.loading import Served
from service.api.openai import EmbeddingsBody, embeddings_of
from service.api.ranking import Ranked, Ranking
from service.api.routes import time_headers
from service.api.schemas import ClassifyBody, EmbedBody, Passage, RankBody
from service.api.service import Service
from service.api.surface import (
    Asked,
    Documented,
    Lenient,
    Surface,
    bounded,
    checked,
    outcomes,
    tokens_of,
)
from service.api.tei_bodies import (
    EmbedRequest,
    Function,
    Parameters,
    PredictRequest,
    RerankRequest,
    SimilarityParameters,
    SimilarityRequest,
    TokenizeRequest,
    truncation,
)
from service.api.underway import Inference
from service.bundle.manifest import Task
from service.errors import CallerError, InvalidInput, NotReady, UnknownModel
from service.runtime.encode import Piece, Text
from service.runtime.heads import cosines, embedding_answer, sigmoid, softmax, unit_rows
from service.runtime.student import Outcome

OWN_PREFIX = "/tei"
# in the order in which they are what a server without a named model speaks of
_MODEL_TYPES: Mapping[Task, str] = MappingProxyType(
    {"embed": "embedding", "rank": "reranker", "classify": "classifier"}
)
R = TypeVar("R", bound=Lenient)


class WrongTask(CallerError):
    """The model asked cannot do this; TEI's status for it."""

    status, code, title = 424, "wrong_task", "Wrong task"


def add_tei_routes(app: FastAPI, *, root: bool) -> dict[str, DirectRoute]:
    """Register the routes under `/tei` and `/tei/NAME`; with `root`, without a prefix too.

    Returns: what answers each path directly.
    """
    surface = Surface(app, "text-embeddings-inference")
    _add_operations(surface, OWN_PREFIX)
    _add_operations(surface, f"{OWN_PREFIX}/{{student}}")
    if root:
        before = {route.path for route in app.router.routes if isinstance(route, APIRoute)}
        _add_operations(surface, "", but=before)
        added = {route.path for route in app.router.routes if isinstance(route, APIRoute)} - before
        setattr(app.state, ROOT_TEI, added)
    return surface.direct


def _add_operations(surface: Surface, prefix: str, *, but: Collection[str] = ()) -> None:
    shown = prefix == OWN_PREFIX
    for path, handler, route in _POSTS:
        whole, told = prefix + path, replace(route, shown=shown and path != "/")
        if whole and whole not in but:
            (surface.post if "{" in whole else surface.post_direct)(whole, handler, told)
    for path, endpoint, summary in (
        ("/info", info, "What is served, as TEI tells it"),
        ("/health", health, "200 while requests are answered"),
        ("/ping", health, "200 while requests are answered"),
    ):
        surface.get(prefix + path, endpoint, Documented(summary, shown=shown))


def _student(asked: Asked, task: Task) -> Served:
    """The student that the path names, or the only one of the task.

    Raises:
        WrongTask: it does another, or none does this.
        InvalidInput: several do, and the path names none.
    """
    named = asked.path.get("student")
    try:
        return asked.find(named, task)
    except UnknownModel as error:
        raise (WrongTask(error.detail) if named is None else error) from None
    except InvalidInput as error:
        if named is None:
            several = error.detail.removeprefix("is required: ")
            raise InvalidInput(f"{several}; name one in the path, as {OWN_PREFIX}/NAME") from None
        raise WrongTask(error.detail) from None


def _read(asked: Asked, model: type[R], *, items: str = "inputs") -> R:
    return checked(object_of(asked.raw), model, items=items, max_items=asked.service.settings.max_items)


def _characters(inputs: Sequence[Text]) -> int:
    return sum(len(one) if isinstance(one, str) else len(one[0]) + len(one[1]) for one in inputs)


async def _answer(asked: Asked, write: Callable[[], bytes], inputs: Sequence[Text], ran: Inference | Ranking) -> Reply:
    """The answer, with TEI's headers; times in milliseconds."""
    content = await asked.written(write, len(inputs))
    timing = Timing(ran.queue_s, ran.compute_s, time.monotonic() - asked.arrived)
    tokens = ran.tokens if isinstance(ran, Ranking) else tokens_of(ran)
    headers = [
        (b"x-compute-type", b"gpu" if asked.service.settings.backend == "cuda" else b"cpu"),
        (b"x-compute-time", b"%.3f" % (timing.total_s * 1e3)),
        (b"x-compute-characters", b"%d" % _characters(inputs)),
        (b"x-compute-tokens", b"%d" % tokens),
    ]
    return Reply(content, [*headers, *time_headers(timing, tokenize_s=ran.tokenize_s)])


async def embed(asked: Asked) -> Reply:
    """`[[float]]`."""
    body = _read(asked, EmbedRequest)
    served = _student(asked, "embed")
    cut = truncation(body, asked.service.settings)
    native = EmbedBody.model_construct(inputs=body.inputs, dimensions=body.dimensions, truncate=cut)
    inference = await asked.infer(served, native, field="/inputs")

    def write() -> bytes:
        ended = outcomes(inference, field="/inputs")
        vectors = [embedding_answer(one.raw, dimensions=body.dimensions, normalize=body.normalize) for one in ended]
        return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)

    return await _answer(asked, write, body.inputs, inference)


async def predict(asked: Asked) -> Reply:
    """`[{score, label}]` of one input, else a list of such lists; the likeliest first."""
    body = _read(asked, PredictRequest)
    served = _student(asked, "classify")
    inputs = body.inputs.inputs
    native = ClassifyBody.model_construct(inputs=inputs, truncate=truncation(body, asked.service.settings))
    inference = await asked.infer(served, native, field="/inputs")

    def write() -> bytes:
        predictions = [_predictions(served, body, one) for one in outcomes(inference, field="/inputs")]
        bare = body.inputs.single and body.parameters is None
        return orjson.dumps(predictions[0] if bare else predictions)

    return await _answer(asked, write, inputs, inference)


def _predictions(served: Served, body: PredictRequest, outcome: Outcome) -> list[dict[str, Any]]:
    parameters = body.parameters or Parameters()
    scores = _scores(served, outcome, "none" if body.raw_scores else parameters.function_to_apply)
    # subtle: the order of the raw numbers, which saturated scores have lost
    order = np.argsort(-outcome.raw, kind="stable")[: parameters.top_k]
    return [{"score": float(scores[i]), "label": served.manifest.labels[i]} for i in order]


def _scores(served: Served, outcome: Outcome, function: Function | None) -> npt.NDArray[np.floating[Any]]:
    if function == "none":
        return outcome.raw
    temperature = served.manifest.exits[outcome.exit_index].answer_temperature
    return (sigmoid if function == "sigmoid" else softmax)(outcome.raw, temperature=temperature)


async def rerank(asked: Asked) -> Reply:
    """`[{index, score, text?}]` of all texts, the best first."""
    body = _read(asked, RerankRequest, items="texts")
    served = _student(asked, "rank")
    passages = tuple(Passage(text) for text in body.texts)
    cut = truncation(body, asked.service.settings)
    ranking = await asked.rank(
        served, RankBody.model_construct(query=body.query, passages=passages, truncate=cut), field="/texts"
    )

    def write() -> bytes:
        return orjson.dumps([_rank(body, one) for one in ranking.results])

    return await _answer(asked, write, (body.query, *body.texts), ranking)


def _rank(body: RerankRequest, one: Ranked) -> dict[str, Any]:
    text = {"text": one.passage.text} if body.return_text else {}
    return {"index": one.index, "score": one.raw if body.raw_scores else one.score} | text


async def similarity(asked: Asked) -> Reply:
    """`[float]`: each sentence's cosine with the source sentence."""
    document, settings = object_of(asked.raw), asked.service.settings
    bounded(document.get("inputs"), "sentences", max_items=settings.max_items)
    body = checked(document, SimilarityRequest, items="inputs", max_items=settings.max_items)
    served = _student(asked, "embed")
    inputs = (body.inputs.source_sentence, *body.inputs.sentences)
    cut = truncation(body.parameters or SimilarityParameters(), settings)
    inference = await asked.infer(served, EmbedBody.model_construct(inputs=inputs, truncate=cut), field="/inputs")

    def write() -> bytes:
        vectors = unit_rows(np.stack([embedding_answer(one.raw) for one in outcomes(inference, field="/inputs")]))
        return orjson.dumps(cosines(vectors[0], vectors[1:]), option=orjson.OPT_SERIALIZE_NUMPY)

    return await _answer(asked, write, inputs, inference)


async def tokenize(asked: Asked) -> Reply:
    """For each text `[{id, text, special, start, stop}]`."""
    body = _read(asked, TokenizeRequest)
    served = _spoken_of(asked.service, asked.path)
    asked.count_as(served)
    encoder = served.student.encoder

    def work(texts: Sequence[Text], first: int) -> list[list[Piece]]:
        portion = body.inputs[first : first + len(texts)]
        return [encoder.pieces(text, special=body.add_special_tokens) for text in portion]

    tokens = await asked.service.tokenize(served, body.inputs, work, call=asked.call())
    return Reply(await asked.written(lambda: orjson.dumps(tokens), len(tokens)))


async def embeddings(asked: Asked) -> Reply:
    """OpenAI's list of embeddings; the body's `model` is not looked at."""
    return await embeddings_of(asked, _student(asked, "embed"))


async def embed_all(_: Asked) -> Reply:
    """Refused."""
    raise WrongTask("students give one embedding a text, none for each token")


async def anything(asked: Asked) -> Reply:
    """The operation that the body is for; where it may be for two, the student that the path names decides."""
    document = object_of(asked.raw)
    if "texts" in document:
        return await rerank(asked)
    if isinstance(document.get("inputs"), dict):
        return await similarity(asked)
    named = asked.path.get("student")
    task = "classify" if "parameters" in document else "embed"
    if named is not None:
        task = asked.service.students.named(named).manifest.task
    return await (predict if task == "classify" else embed)(asked)


def _spoken_of(service: Service, path: Mapping[str, str]) -> Served:
    """The student that the path names; else one of those in production: of embed, rank, classify, by name.

    Raises: UnknownModel, NotReady: it is not in service; there is none.
    """
    named = path.get("student")
    if named is not None:
        return service.students.named(named)
    productions = [family.production for family in service.students.families.values()]
    served = [one for one in productions if one is not None]
    if not served:
        raise NotReady("no student is in service yet")
    return min(served, key=lambda one: (list(_MODEL_TYPES).index(one.manifest.task), one.name))


async def info(request: Request) -> Response:
    """What is served."""
    service: Service = request.app.state.service
    served, settings = _spoken_of(service, request.path_params), service.settings
    document = {
        "model_id": served.name,
        "model_sha": str(served.version),
        "model_dtype": served.student.precision,
        "model_type": {_MODEL_TYPES[served.manifest.task]: _labels(served)},
        "max_concurrent_requests": settings.max_queue_items,
        "max_input_length": served.manifest.max_tokens,
        "max_batch_tokens": settings.token_budget,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_items,
        "auto_truncate": settings.default_truncate != "error",
        "tokenization_workers": settings.slots,
        "version": version("understudy"),
        "sha": None,
        "docker_label": None,
        "students": sorted(service.students.served()),
    }
    return Response(orjson.dumps(document), media_type="application/json")


def _labels(served: Served) -> dict[str, Any]:
    labels = served.manifest.labels
    if served.manifest.task == "embed":
        return {"pooling": None}
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


async def health(request: Request) -> Response:
    """200 and nothing, or TEI's error."""
    service: Service = request.app.state.service
    if service.ready:
        return Response()
    return error_response(request.scope, NotReady("unhealthy"))


_POSTS: tuple[tuple[str, Callable[[Asked], Awaitable[Reply]], Documented], ...] = (
    ("/embed", embed, Documented("An embedding of each text", EmbedRequest)),
    ("/predict", predict, Documented("Every label's score, for each text or pair", PredictRequest)),
    ("/rerank", rerank, Documented("Texts by their relevance to a query", RerankRequest)),
    ("/similarity", similarity, Documented("How near each sentence is to another", SimilarityRequest)),
    ("/tokenize", tokenize, Documented("Texts as tokens", TokenizeRequest)),
    ("/embeddings", embeddings, Documented("OpenAI's embeddings", EmbeddingsBody)),
    ("/v1/embeddings", embeddings, Documented("OpenAI's embeddings", EmbeddingsBody)),
    ("/embed_all", embed_all, Documented("Not offered: students give one embedding a text")),
    ("", anything, Documented("What the body asks for: huggingface_hub posts here")),
    ("/", anything, Documented("The same")),
)
