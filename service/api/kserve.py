"""Open Inference Protocol v2 (KServe, Triton's clients) under `/v2`: every student is a model that takes BYTES tensors.

| task | inputs | outputs |
|---|---|---|
| classify | `text` [N] or [N, 1]; pairs: [N, 2], or `text_pair` too | `label`, `score`, `exit`, `depth`; `scores` |
| embed | `text` [N] or [N, 1] | `embedding`, `exit`, `depth` |
| rank | `query` [1], `passages` [N] | `score`, `exit`, `depth`, in the passages' order |

`label` and `exit` are BYTES [N], `score` and `depth` FP32 [N], `embedding` FP32 [N, D]; `scores`, FP32 [N, labels],
comes where it is named.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api.call import PRIORITY, Call
from service.api.conversation import exchange_of
from service.api.dialects import error_response
from service.api.families import Family
from service.api.kserve_tensors import (
    HEADER_LENGTH,
    InferRequest,
    Output,
    OutputParameters,
    RequestParameters,
    Texts,
    split,
    texts_of,
    write,
)
from service.api.loading import Served
from service.api.problems import wrong_field
from service.api.schemas import ClassifyBody, EmbedBody, Passage, RankBody
from service.api.service import Service
from service.api.surface import Asked, Documented, Surface, checked, outcomes
from service.bundle.manifest import Task
from service.errors import InvalidInput, NotReady
from service.runtime.encode import Text
from service.runtime.heads import ExitSetting, LabelAnswer, embedding_answer, label_answer, softmax
from service.runtime.student import Outcome

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
_INPUTS: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {"classify": ("text",), "embed": ("text",), "rank": ("query", "passages")}
)
Column = Callable[[], Any]


def add_kserve_routes(app: FastAPI) -> None:
    """Register the routes."""
    surface = Surface(app, "Open Inference Protocol v2")
    model = "/v2/models/{model}"
    for path in (model, f"{model}/versions/{{version}}"):
        shown = path == model
        surface.post(f"{path}/infer", infer, Documented("Run a student", InferRequest, shown))
        surface.get(f"{path}/ready", model_ready, Documented("Whether it answers", shown=shown))
        surface.get(path, metadata, Documented("Its tensors", shown=shown))
    surface.get("/v2", server, Documented("What this server is"))
    surface.get("/v2/health/live", live, Documented("Whether the process works"))
    surface.get("/v2/health/ready", ready, Documented("Whether requests will be answered"))
    surface.post("/v2/repository/index", index, Documented("Every version in service, or refused"))
    for verb in ("load", "unload"):
        surface.post(f"/v2/repository/models/{{model}}/{verb}", refused, Documented("Not offered", shown=False))


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def server(_: Request) -> Response:
    """Name, version, extensions."""
    document = {"name": "understudy", "version": version("understudy"), "extensions": EXTENSIONS}
    return _json(document)


async def live(request: Request) -> Response:
    """200 while this process can do its work."""
    return _probe(request, "live", _service(request).live)


async def ready(request: Request) -> Response:
    """200 while requests are answered."""
    return _probe(request, "ready", _service(request).ready)


def _probe(request: Request, state: str, well: bool) -> Response:
    if well:
        return _json({state: True})
    return error_response(request.scope, NotReady(f"the service is not {state}"))


def _asked_for(service: Service, path: Mapping[str, str]) -> Served:
    """The version that the path means. Raises: UnknownModel, NotReady, InvalidInput: there is none."""
    name, wanted = path["model"], path.get("version")
    if wanted is not None and "@" in name:
        raise wrong_field("/model", "name a version in the model's name or in the path, not in both")
    return service.students.named(name if wanted is None else f"{name}@{wanted}")


async def model_ready(request: Request) -> Response:
    """200 where the version is in service."""
    served = _asked_for(_service(request), request.path_params)
    return _json({"name": served.name, "ready": True})


async def metadata(request: Request) -> Response:
    """A version's tensors."""
    served = _asked_for(_service(request), request.path_params)
    names = _INPUTS[served.manifest.task]
    columns = 2 if served.manifest.pairs != "none" and served.manifest.task != "rank" else None
    shape = [-1] if columns is None else [-1, columns]
    document = {
        "name": served.name,
        "versions": [str(one) for one in _service(request).students.families[served.name].versions],
        "platform": "understudy",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [1] if name == "query" else shape} for name in names],
        "outputs": _outputs(served),
    }
    return _json(document)


def _outputs(served: Served) -> list[dict[str, Any]]:
    numbers: dict[str, list[int]] = {"score": [-1]}
    if served.manifest.task == "embed":
        numbers = {"embedding": [-1, served.manifest.embedding_dimensions or -1]}
    if served.manifest.task == "classify":
        numbers["scores"] = [-1, len(served.manifest.labels)]
    texts = ["label", "exit"] if served.manifest.task == "classify" else ["exit"]
    return [
        *({"name": name, "datatype": "BYTES", "shape": [-1]} for name in texts),
        *({"name": name, "datatype": "FP32", "shape": shape} for name, shape in (numbers | {"depth": [-1]}).items()),
    ]


async def index(asked: Asked) -> Response:
    """Triton's list of what the store holds."""
    families = sorted(asked.service.students.families.items())
    return _json([entry for _, family in families for entry in _entries(family)])


def _entries(family: Family) -> list[dict[str, str]]:
    refused = [(one.version, one.error) for one in family.refused]
    return [
        *({"name": family.name, "version": str(one), "state": "READY", "reason": ""} for one in family.versions),
        *(
            {"name": family.name, "version": str(one or ""), "state": "UNAVAILABLE", "reason": error}
            for one, error in refused
        ),
    ]


async def refused(_: Asked) -> Response:
    """Refused: the store's aliases decide."""
    raise InvalidInput("what is in service follows the store's aliases; `/admin` and `understudy models` move them")


@dataclass(frozen=True, slots=True)
class _Run:
    """A checked request: the tensors, and how they are to be run."""

    texts: Mapping[str, Texts]
    parameters: RequestParameters
    call: Call

    @property
    def exit(self) -> ExitSetting:
        """The parameter `exit`. Raises: InvalidInput: it is none of its words, nor a risk."""
        value = self.parameters.exit
        if value is None or value == "default":
            return "default"
        if value == "never":
            return "never"
        try:
            risk = float(value)
        except ValueError:
            risk = 0.0
        if not 0 < risk < 1:
            raise wrong_field("/parameters/exit", 'must be "default", "never" or a risk above 0 and below 1')
        return risk


async def infer(asked: Asked) -> Response:
    """Run a student; the answer's tensors in JSON or behind it, as asked."""
    served = _asked_for(asked.service, asked.path)
    asked.count_as(served)
    document, behind = split(asked.raw, exchange_of(asked.scope).headers.get(HEADER_LENGTH))
    settings = asked.service.settings
    body = checked(document, InferRequest, items="inputs", max_items=settings.max_items)
    texts = {one.name: one for one in texts_of(body.inputs, behind, max_items=settings.max_items)}
    parameters = body.parameters or RequestParameters()
    run = _Run(texts, parameters, _call(asked, parameters))
    columns = await _TASKS[served.manifest.task](asked, served, run)
    echoed = {} if body.id is None else {"id": body.id}
    head = {"model_name": served.name, "model_version": str(served.version)} | echoed
    rows = max(one.rows for one in texts.values())

    def answer() -> tuple[bytes, int | None]:
        return write(head, _wanted(body, columns))

    content, header_length = await asked.written(answer, rows)
    if header_length is None:
        return Response(content, media_type="application/json")
    headers = {HEADER_LENGTH.decode(): str(header_length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _call(asked: Asked, parameters: RequestParameters) -> Call:
    call = asked.call(parameters.timeout / 1e3 if parameters.timeout else None)
    if PRIORITY in exchange_of(asked.scope).headers or parameters.priority in (0, 2):
        return call
    return call._replace(priority="high" if parameters.priority == 1 else "low")


def _wanted(body: InferRequest, columns: "_Columns") -> list[Output]:
    """The outputs that were named; all but `scores` where none was."""
    everywhere = body.parameters is not None and body.parameters.binary_data_output
    if not body.outputs:
        return [_output(name, column(), everywhere) for name, column in columns.named.items() if name != "scores"]
    found = []
    for place, one in enumerate(body.outputs):
        if one.name not in columns.named:
            known = ", ".join(columns.named)
            raise wrong_field(f"/outputs/{place}/name", f"there is no output {one.name[:64]!r} among {known}")
        parameters = one.parameters or OutputParameters()
        binary = everywhere if parameters.binary_data is None else parameters.binary_data
        column = columns.named[one.name] if parameters.classification is None else columns.classes(parameters, place)
        found.append(_output(one.name, column(), binary))
    return found


def _output(name: str, data: Any, binary: bool) -> Output:
    if isinstance(data, np.ndarray):
        return Output(name, data, data.shape, binary)
    rows, columns = len(data), len(data[0]) if isinstance(data[0], list) else None
    if columns is None:
        return Output(name, data, (rows,), binary)
    return Output(name, [text for row in data for text in row], (rows, columns), binary)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What a run came to, each output made when it is wanted: arrays, lists of texts, or lists of lists of texts."""

    named: Mapping[str, Column]
    served: Served | None = None
    outcomes: Sequence[Outcome] = ()

    def classes(self, parameters: OutputParameters, place: int) -> Column:
        """For each input its best labels as `score:index:label`. Raises: InvalidInput: there are no labels."""
        served, count = self.served, parameters.classification
        if served is None or count is None:
            raise wrong_field(f"/outputs/{place}/parameters/classification", "is for students with labels")
        places = {label: at for at, label in enumerate(served.manifest.labels)}

        def column() -> list[list[str]]:
            answers = (_label(served, one, top_k=count).labels for one in self.outcomes)
            return [[f"{best.score:.6f}:{places[best.label]}:{best.label}" for best in answer] for answer in answers]

        return column


def _label(served: Served, outcome: Outcome, *, top_k: int = 0) -> LabelAnswer:
    temperature = served.manifest.exits[outcome.exit_index].answer_temperature
    return label_answer(outcome.raw, temperature=temperature, labels=served.manifest.labels, top_k=top_k)


def _scores(served: Served, outcome: Outcome) -> npt.NDArray[np.float64]:
    return softmax(outcome.raw, temperature=served.manifest.exits[outcome.exit_index].answer_temperature)


def _left(served: Served, ended: Sequence[Outcome]) -> dict[str, Column]:
    """Where each input left the student."""
    exits = [served.manifest.exits[one.exit_index] for one in ended]
    return {"exit": lambda: [one.id for one in exits], "depth": lambda: _floats([one.depth for one in exits])}


def _floats(values: Any) -> npt.NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


async def _classify(asked: Asked, served: Served, run: _Run) -> _Columns:
    native = ClassifyBody.model_construct(inputs=_items(run), exit=run.exit, truncate=run.parameters.truncate)
    inference = await asked.infer(served, native, call=run.call, field="/inputs")
    ended = outcomes(inference, field="/inputs")
    answers = [_label(served, one) for one in ended]
    columns: dict[str, Column] = {
        "label": lambda: [one.label for one in answers],
        "score": lambda: _floats([one.score for one in answers]),
        "scores": lambda: _floats([_scores(served, one) for one in ended]),
    }
    return _Columns(columns | _left(served, ended), served, ended)


async def _embed(asked: Asked, served: Served, run: _Run) -> _Columns:
    native = EmbedBody.model_construct(inputs=_items(run), exit=run.exit, truncate=run.parameters.truncate)
    inference = await asked.infer(served, native, call=run.call, field="/inputs")
    ended = outcomes(inference, field="/inputs")
    columns: dict[str, Column] = {"embedding": lambda: np.stack([embedding_answer(one.raw) for one in ended])}
    return _Columns(columns | _left(served, ended))


async def _rank(asked: Asked, served: Served, run: _Run) -> _Columns:
    query, passages = (_texts(run, name) for name in ("query", "passages"))
    if len(query) != 1:
        raise wrong_field("/inputs", f"`query` holds one text, not {len(query)}")
    native = RankBody.model_construct(
        query=query[0],
        passages=tuple(Passage(text) for text in passages),
        exit=run.exit,
        truncate=run.parameters.truncate,
    )
    ranking = await asked.rank(served, native, call=run.call, field="/inputs/passages")
    results = sorted(ranking.results, key=lambda one: one.index)
    return _Columns(
        {
            "score": lambda: _floats([one.score for one in results]),
            "exit": lambda: [one.exit for one in results],
            "depth": lambda: _floats([one.depth for one in results]),
        }
    )


def _items(run: _Run) -> tuple[Text, ...]:
    """Texts or pairs. A tensor that comes alone may have any name."""
    if len(run.texts) == 1:
        (only,) = run.texts.values()
        if only.columns == 1:
            return only.texts
        if only.columns == 2:
            return tuple(zip(only.texts[::2], only.texts[1::2], strict=True))
        raise wrong_field("/inputs/0/shape", "must be [N], [N, 1], or [N, 2] for pairs")
    first, second = (_texts(run, name) for name in ("text", "text_pair"))
    if len(first) != len(second):
        raise wrong_field("/inputs", f"`text` holds {len(first)} texts, `text_pair` {len(second)}")
    return tuple(zip(first, second, strict=True))


def _texts(run: _Run, name: str) -> tuple[str, ...]:
    tensor = run.texts.get(name)
    if tensor is None:
        raise wrong_field("/inputs", f"there is no input `{name}` among {', '.join(run.texts)[:256]}")
    return tensor.texts


_TASKS: Mapping[Task, Callable[[Asked, Served, _Run], Awaitable[_Columns]]] = MappingProxyType(
    {"classify": _classify, "embed": _embed, "rank": _rank}
)
