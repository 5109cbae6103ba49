"""Strict reading of the store's JSON files into pydantic models.

Stricter than JSON parsers are: UTF-8 without a byte-order mark, no key twice in one object, no NaN or infinity, no
number where a string is meant or the reverse. Everything wrong becomes one `ValueError` that names the field by its
RFC 6901 JSON pointer; callers turn it into their named error.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
        ValueError: not UTF-8, not JSON, not an object, a key twice in one object, or a number that is not finite.
    """
    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def validated(model: type[Model], document: dict[str, Any], *, ignore_unknown: bool = False) -> Model:
    """`document` as a `model`, no value converted from another JSON type.

    Args:
        model: a pydantic model with `extra="forbid"` throughout.
        document: what `read_object` returned.
        ignore_unknown: leave out fields that the model, at any depth, does not know (a newer minor version's).
    Raises:
        ValueError: `/POINTER: what is wrong there`, of the first thing that is wrong.
    """
    try:
        return _validated(model, document)
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        if not (ignore_unknown and unknown):
            raise ValueError(_sentence(error)) from error
    # subtle: pydantic checks the parts of a document against one another only when it has no unknown field left
    try:
        return _validated(model, _without(document, unknown))
    except ValidationError as error:
        raise ValueError(_sentence(error)) from error


def pointer(path: Sequence[int | str]) -> str:
    """The JSON pointer of a path.

    >>> pointer(("files", "stages/00.onnx", "bytes"))
    '/files/stages~100.onnx/bytes'
    """
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _validated(model: type[Model], document: dict[str, Any]) -> Model:
    return model.model_validate_json(json.dumps(document), strict=True)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    said = first["msg"].removeprefix("Value error, ")
    return f"{pointer(first['loc'])}: {said}" if first["loc"] else said


def _without(document: dict[str, Any], paths: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of `document` less the object members at `paths`."""
    pruned: dict[str, Any] = json.loads(json.dumps(document))
    for path in paths:
        parent: Any = pruned
        for part in path[:-1]:
            parent = parent[part]
        del parent[path[-1]]
    return pruned


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} occurs twice in one object")
    return members


def _refuse_constant(literal: str) -> float:
    raise ValueError(f"{literal} is not a JSON number")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is out of range")
    return number
