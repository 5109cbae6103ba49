"""What text-embeddings-inference's requests may say, as its own server reads them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api.surface import Lenient
from service.runtime.encode import Text, Truncate
from service.settings import Settings

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "minItems": 1, "items": _TEXT}


def _wrong(detail: str, *at: int) -> PydanticCustomError:
    return PydanticCustomError("field", "{detail}", {"detail": detail, "at": list(at)})


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise _wrong("must be a text or a list of texts, at least one")
    for place, item in enumerate(value):
        if not isinstance(item, str):
            raise _wrong("must be a text; token ids are not taken, since they are another model's", place)
    return tuple(value)


@dataclass(frozen=True, slots=True)
class Pairable:
    """Texts or pairs; `single`: one came alone, and its answer is not to be in a list."""

    inputs: tuple[Text, ...]
    single: bool


def _pairable(value: Any) -> Pairable:
    if isinstance(value, str):
        return Pairable((value,), single=True)
    if not isinstance(value, list) or not value:
        raise _wrong("must be a text, a pair of texts, or a list of lists of one or two texts")
    if isinstance(value[0], str):
        return Pairable((_sequence(value),), single=True)
    return Pairable(tuple(_sequence(item, place) for place, item in enumerate(value)), single=False)


def _sequence(value: Any, *at: int) -> Text:
    if not isinstance(value, list) or not 1 <= len(value) <= 2 or not all(isinstance(text, str) for text in value):
        raise _wrong("must hold one text or two (a pair); a batch is a list of such lists: [[text], [text]]", *at)
    return value[0] if len(value) == 1 else (value[0], value[1])


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


TeiTexts = Annotated[tuple[str, ...], PlainValidator(_texts), WithJsonSchema({"anyOf": [_TEXT, _TEXTS]})]
Pairables = Annotated[
    Pairable,
    PlainValidator(_pairable),
    WithJsonSchema({"anyOf": [_TEXT, _TEXTS | {"maxItems": 2}, {"type": "array", "items": _TEXTS | {"maxItems": 2}}]}),
    Field(description="A text, a pair [text, text], or a batch [[text], [text, text]]."),
]
Function = Literal["softmax", "sigmoid", "none"]
Direction = Annotated[Literal["left", "right"] | None, BeforeValidator(_lower)]


class TruncatingRequest(Lenient):
    """A request whose texts may be too long."""

    truncate: Annotated[bool | None, Field(description="false: refuse; null: as the service is set.")] = None
    truncation_direction: Annotated[Direction, Field(description="The side that is cut; either case.")] = None


class _Prompted(TruncatingRequest):
    prompt_name: Annotated[None, Field(description="Students have no named prompts.")] = None


class EmbedRequest(_Prompted):
    """A request to `/embed`."""

    inputs: TeiTexts
    normalize: bool = True
    dimensions: Annotated[int | None, Field(ge=1)] = None


class Parameters(Lenient):
    """What Hugging Face's clients send beside the inputs of a text classification."""

    top_k: Annotated[int | None, Field(ge=1)] = None
    function_to_apply: Function | None = None


class PredictRequest(TruncatingRequest):
    """A request to `/predict`. With `parameters` the answer is always a list of lists, as pipelines give it."""

    inputs: Pairables
    raw_scores: bool = False
    parameters: Parameters | None = None


class RerankRequest(TruncatingRequest):
    """A request to `/rerank`."""

    query: str
    texts: Annotated[tuple[str, ...], PlainValidator(_texts), WithJsonSchema(_TEXTS)]
    raw_scores: bool = False
    return_text: bool = False


class Sentences(Lenient):
    """What is compared, and with what."""

    source_sentence: str
    sentences: Annotated[tuple[str, ...], PlainValidator(_texts), WithJsonSchema(_TEXTS)]


class SimilarityParameters(_Prompted):
    """How the sentences are read."""


class SimilarityRequest(Lenient):
    """A request to `/similarity`."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class TokenizeRequest(_Prompted):
    """A request to `/tokenize`."""

    inputs: TeiTexts
    add_special_tokens: bool = True


def truncation(body: TruncatingRequest, settings: Settings) -> Truncate:
    """What is done with a text that is too long.

    Its own server's rule: a `truncate` that is left out is the server's setting; a side that is left out, the right.
    """
    refused = settings.default_truncate == "error" if body.truncate is None else not body.truncate
    if refused:
        return "error"
    if body.truncation_direction is None:
        return settings.default_truncate if body.truncate is None else "end"
    return "start" if body.truncation_direction == "left" else "end"
