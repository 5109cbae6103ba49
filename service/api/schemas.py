"""The native API's bodies: what requests may say (checked), and what answers look like (documentation).

Requests are strict: an unknown field or a number in quotes is an error with a JSON pointer. Answers are written by
`answers.py` straight from arrays; the answer models here describe them in OpenAPI, and tests hold them to it.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from service.runtime.encode import Text
from service.runtime.heads import ExitSetting

MAX_DEADLINE_MS = 3_600_000
MAX_ID_CHARACTERS = 1024
MAX_DIMENSIONS = 1 << 16


def _wrong(detail: str, *at: str | int) -> PydanticCustomError:
    """A problem at a place below the field: `at` continues the field's own JSON pointer."""
    return PydanticCustomError("field", "{detail}", {"detail": detail, "at": list(at)})


def _inputs(value: Any) -> tuple[Text, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise _wrong("must be a text, a list of texts, or a list of pairs of texts")
    if not value:
        raise _wrong("must hold at least one input")
    if set(map(type, value)) == {str}:
        return tuple(value)
    check = _text if isinstance(value[0], str) else _pair
    return tuple(check(item, index) for index, item in enumerate(value))


def _text(item: Any, index: int) -> str:
    if not isinstance(item, str):
        raise _wrong("must be a text, as the first input is", index)
    return item


def _pair(item: Any, index: int) -> tuple[str, str]:
    if not isinstance(item, list):
        raise _wrong("must be a text or a pair of texts, all inputs alike", index)
    if len(item) != 2:
        raise _wrong(f"a pair holds two texts, not {len(item)}", index)
    for place, text in enumerate(item):
        if not isinstance(text, str):
            raise _wrong("must be a text", index, place)
    return (item[0], item[1])


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to be ranked, and the caller's own name for it, if it has one."""

    text: str
    id: str | None = None


def _passages(value: Any) -> tuple[Passage, ...]:
    if not isinstance(value, list):
        raise _wrong("must be a list of texts or of objects with a `text`")
    if not value:
        raise _wrong("must hold at least one passage")
    return tuple(Passage(item) if isinstance(item, str) else _passage(item, at) for at, item in enumerate(value))


def _passage(item: Any, index: int) -> Passage:
    if not isinstance(item, dict):
        raise _wrong("must be a text or an object with a `text`", index)
    for field in item:
        if field not in ("id", "text"):
            raise _wrong("unknown field", index, field)
    if not isinstance(item.get("text"), str):
        raise _wrong("must be a text" if "text" in item else "is required", index, "text")
    own = item.get("id")
    if own is not None and not (isinstance(own, str) and len(own) <= MAX_ID_CHARACTERS):
        raise _wrong(f"must be a text of at most {MAX_ID_CHARACTERS} characters", index, "id")
    return Passage(item["text"], own)


def _uncut(value: Any) -> Any:
    if value == "chunk":
        raise _wrong('"chunk" is for rank, which keeps a passage\'s best chunk: use "error", "end" or "start"')
    return value


def _exit(value: Any) -> ExitSetting:
    if value == "default" or value == "never":
        return "default" if value == "default" else "never"
    if not isinstance(value, dict) or "risk" not in value:
        raise _wrong('must be "default", "never" or {"risk": r}')
    for field in value:
        if field != "risk":
            raise _wrong("unknown field", field)
    risk = value["risk"]
    if isinstance(risk, bool) or not isinstance(risk, int | float) or not 0 < risk < 1:
        raise _wrong("must be a number above 0 and below 1", "risk")
    return float(risk)


_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "minItems": 1, "items": _TEXT}
_PAIRS = {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": _TEXT}}
_RISK = {
    "type": "object",
    "required": ["risk"],
    "additionalProperties": False,
    "properties": {"risk": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}},
}

_PASSAGE = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {"id": {"type": "string", "maxLength": MAX_ID_CHARACTERS}, "text": _TEXT},
}

Inputs = Annotated[
    tuple[Text, ...],
    PlainValidator(_inputs),
    WithJsonSchema({"anyOf": [_TEXT, _TEXTS, _PAIRS]}),
    Field(description="One text, several, or pairs of texts where the student takes pairs. Empty texts are answered."),
]
Texts = Annotated[
    tuple[Text, ...],
    PlainValidator(_inputs),
    WithJsonSchema({"anyOf": [_TEXT, _TEXTS]}),
    Field(description="One text, or several. Empty texts are answered."),
]
Passages = Annotated[
    tuple[Passage, ...],
    PlainValidator(_passages),
    WithJsonSchema({"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, _PASSAGE]}}),
    Field(description="Texts, or objects of a text and the caller's own `id` for it, which need not be distinct."),
]
Truncation = Annotated[
    Literal["error", "end", "start"] | None,
    BeforeValidator(_uncut),
    Field(description="A text beyond the student's limit: refuse it, or cut its end or its start."),
]
ExitField = Annotated[
    ExitSetting,
    PlainValidator(_exit),
    WithJsonSchema({"anyOf": [{"enum": ["default", "never"]}, _RISK], "default": "default"}),
    Field(
        description="How early an answer may leave: the student's default risk, `never` (full depth), or the largest "
        "certified operating point whose risk is at most `risk`."
    ),
]


class AnyBody(BaseModel):
    """What every inference request may say."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    model: Annotated[
        str | None,
        Field(
            max_length=256,
            description="`name` (its production alias), `name@alias` or `name@version`. May be left out where one "
            "student serves the task.",
        ),
    ] = None
    exit: ExitField = "default"
    on_error: Annotated[
        Literal["fail", "item"],
        Field(
            description="An input that cannot be answered fails the request, or only itself (`error` in its result)."
        ),
    ] = "fail"
    deadline_ms: Annotated[
        float | None,
        Field(gt=0, le=MAX_DEADLINE_MS, description="Milliseconds from arrival after which an answer is of no use."),
    ] = None


class Body(AnyBody):
    """A request of which every input has one answer, in order."""

    inputs: Inputs
    truncate: Truncation = None


class ClassifyBody(Body):
    """A request to `/v1/classify`."""

    top_k: Annotated[
        int | None,
        Field(ge=1, le=1 << 20, description="List so many of the likeliest labels; above their number: all of them."),
    ] = None


class EmbedBody(Body):
    """A request to `/v1/embed`."""

    inputs: Texts
    dimensions: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_DIMENSIONS,
            description="Keep the first so many numbers of the embedding (before it is scaled); the student's own "
            "number at most.",
        ),
    ] = None
    normalize: Annotated[bool, Field(description="Scale the embedding to length 1; int8 and binary always are.")] = True
    encoding: Annotated[
        Literal["float", "base64", "int8", "binary"],
        Field(
            description="Numbers; base64 of little-endian float32; whole numbers, round(127 x the unit vector); or "
            "sign bits, eight to a whole number of 0 to 255, the first in its highest bit, the last filled up with 0."
        ),
    ] = "float"

    @model_validator(mode="after")
    def _has_no_pairs(self) -> Self:
        if not isinstance(self.inputs[0], str):
            raise _wrong("embed takes texts, not pairs", "inputs", 0)
        return self


class RankBody(AnyBody):
    """A request to `/v1/rank`."""

    query: Annotated[str, Field(description="What the passages are ranked for. May be empty.")]
    passages: Passages
    truncate: Annotated[
        Literal["error", "end", "start", "chunk"] | None,
        Field(
            description="A passage (with its query, where the student reads both as one) beyond the student's limit: "
            "refuse it, cut its end or its start, or score it in overlapping chunks, of which the best counts."
        ),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=1, le=1 << 20, description="List so many of the best passages; above their number: all.")
    ] = None
    return_text: Annotated[bool, Field(description="Repeat each passage's text in its result.")] = False
    raw_scores: Annotated[
        bool, Field(description="Give a pair scorer's raw numbers instead of their sigmoid; the order is the same.")
    ] = False


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FieldError(_Answer):
    """One bad field: where (RFC 6901 JSON pointer) and what is wrong."""

    pointer: str
    detail: str


class Problem(_Answer):
    """RFC 9457 problem details, as `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | None = None


class Truncated(_Answer):
    """What a cut input lost, in tokens; absent where nothing was cut."""

    kept: int
    dropped: int


class LabelScore(_Answer):
    """A label and its calibrated probability."""

    label: str
    score: float


class _Result(_Answer):
    exit: str
    depth: float
    truncated: Truncated | None = None


class ClassifyResult(_Result):
    """The answer to one input. `labels` comes with `top_k`, `truncated` where the input was cut."""

    label: str
    score: float
    labels: list[LabelScore] | None = None


class EmbedResult(_Result):
    """The embedding of one input: numbers, base64 of little-endian float32, or whole numbers."""

    embedding: list[float] | str | list[int]


class FailedResult(_Answer):
    """With `on_error: item`: why this input has no answer."""

    error: Problem


class ChunkedPassage(Truncated):
    """What became of a long input; `chunks`: it was scored in so many, and the best one counts."""

    chunks: int | None = None


class RankResult(_Answer):
    """One passage: its place in the request, its `id` if it had one, its score; `text` with `return_text`."""

    index: int
    id: str | None = None
    score: float
    text: str | None = None
    exit: str
    depth: float
    truncated: ChunkedPassage | None = None


class FailedPassage(FailedResult):
    """With `on_error: item`: why this passage has no score."""

    index: int
    id: str | None = None


class Usage(_Answer):
    """What the request cost: tokens read, special tokens included, after any cut."""

    tokens: int


class Timing(_Answer):
    """Milliseconds: longest wait of an item, longest computation of an item, and the whole request."""

    queue: float
    compute: float
    total: float


class AppliedExit(_Answer):
    """The risk asked for, and that of the certified operating point in use; null: full depth."""

    risk_requested: float | None
    risk_applied: float | None


class _Envelope(_Answer):
    model: str
    version: int
    exit: AppliedExit
    usage: Usage
    timing_ms: Timing


class ClassifyAnswer(_Envelope):
    """The answer to `/v1/classify`: one result for each input, in their order."""

    results: list[ClassifyResult | FailedResult]


class EmbedAnswer(_Envelope):
    """The answer to `/v1/embed`: one result for each input, in their order."""

    space_id: str
    results: list[EmbedResult | FailedResult]


class RankAnswer(_Envelope):
    """The answer to `/v1/rank`: the best passage first, failed ones last."""

    results: list[RankResult | FailedPassage]
    query_truncated: Truncated | None = None
