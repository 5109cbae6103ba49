"""The tensors of the Open Inference Protocol v2: read from JSON or from the bytes behind it, and written as either.

In the binary form the body is a JSON object, its length in the header `inference-header-content-length`, then the bytes
of each tensor that says `binary_data_size`, in order. A BYTES tensor's elements have their length before them, in four
little-endian bytes. N elements, K columns.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import Field

from service.api.body import object_of
from service.api.surface import Lenient
from service.errors import FieldProblem, InvalidInput, Malformed, TooLarge

HEADER_LENGTH = b"inference-header-content-length"
_LENGTH = struct.Struct("<I")
_DIMENSIONS = 2
_DATATYPES: Mapping[str, str] = {"f": "FP32", "i": "INT64"}


class TensorParameters(Lenient):
    """What is said of one input."""

    binary_data_size: Annotated[int | None, Field(ge=0)] = None


class InputTensor(Lenient):
    """One input: its data in JSON, or behind it."""

    name: Annotated[str, Field(max_length=256)]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=_DIMENSIONS)]
    datatype: str
    parameters: TensorParameters | None = None
    data: Any = None


class OutputParameters(Lenient):
    """What is wanted of one output; `classification`: the best so many labels, as `score:index:label`."""

    binary_data: bool | None = None
    classification: Annotated[int | None, Field(ge=1)] = None


class RequestedOutput(Lenient):
    """One output that is wanted."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(Lenient):
    """What is said of the whole request; `timeout` in microseconds, `priority` 1 (high), 2 (normal), above (low)."""

    binary_data_output: bool = False
    priority: Annotated[int, Field(ge=0)] = 0
    timeout: Annotated[int | None, Field(ge=0)] = None
    exit: str | float | None = None
    truncate: Literal["error", "end", "start"] | None = None


class InferRequest(Lenient):
    """A request to `/v2/models/NAME/infer`."""

    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[RequestedOutput] | None = None
    parameters: RequestParameters | None = None
    id: Annotated[str | None, Field(max_length=1024)] = None


@dataclass(frozen=True, slots=True)
class Texts:
    """A BYTES tensor: `rows` elements of `columns` texts each."""

    name: str
    texts: tuple[str, ...]
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor: numbers, or texts as BYTES.

    Attributes:
        name: as the metadata has it.
        data: float32, int64 [N] or [N, K], or a list of texts, row by row.
        shape: of `data`.
        binary: whether its bytes go behind the JSON.
    """

    name: str
    data: npt.NDArray[Any] | Sequence[str]
    shape: tuple[int, ...]
    binary: bool = False


def split(raw: bytes, header_length: bytes | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a body, and what comes behind it.

    Args:
        raw: the body.
        header_length: the header's value; None: the body is JSON alone.
    Raises: Malformed, InvalidInput: the length is no length of this body, or its JSON is none.
    """
    if header_length is None:
        return object_of(raw), memoryview(b"")
    length = int(header_length) if header_length.isdigit() and len(header_length) < 20 else -1
    if not 0 < length <= len(raw):
        raise Malformed("the header inference-header-content-length is not a length within the body")
    return object_of(raw[:length]), memoryview(raw)[length:]


def texts_of(inputs: Sequence[InputTensor], behind: memoryview, *, max_items: int) -> tuple[Texts, ...]:
    """The inputs' texts.

    Args:
        inputs: the tensors.
        behind: the bytes behind the JSON.
        max_items: rows in one tensor, at most.
    Raises:
        TooLarge: more rows.
        InvalidInput: a tensor is not of texts, or its data is not of its shape.
    """
    read, begin = [], 0
    for place, tensor in enumerate(inputs):
        size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
        _check(tensor, place, max_items)
        if size is None:
            texts = _listed(tensor, place)
        elif begin + size > len(behind):
            raise _wrong(place, "binary_data_size", "is more than the body holds")
        else:
            texts = _framed(behind[begin : begin + size], place)
            begin += size
        if len(texts) != prod(tensor.shape):
            raise _wrong(place, "shape", f"is of {prod(tensor.shape)} elements, the data of {len(texts)}")
        rows, columns = (*tensor.shape, 1)[:_DIMENSIONS]
        read.append(Texts(tensor.name, texts, rows, columns))
    if begin != len(behind):
        raise InvalidInput(f"{len(behind) - begin} bytes behind the JSON belong to no input")
    return tuple(read)


def _wrong(place: int, field: str, detail: str) -> InvalidInput:
    return InvalidInput(detail, errors=(FieldProblem(f"/inputs/{place}/{field}", detail),))


def _check(tensor: InputTensor, place: int, max_items: int) -> None:
    if tensor.datatype != "BYTES":
        raise _wrong(place, "datatype", f"must be BYTES: inputs are texts, not {tensor.datatype[:16]}")
    if not tensor.shape[0] or not prod(tensor.shape):
        raise _wrong(place, "shape", "must hold at least one element")
    if tensor.shape[0] > max_items:
        raise TooLarge(f"{tensor.shape[0]} in `{tensor.name}`; one request may have {max_items}")


def _listed(tensor: InputTensor, place: int) -> tuple[str, ...]:
    """JSON data, row-major: flat, or with its rows as lists."""
    if not isinstance(tensor.data, list):
        raise _wrong(place, "data", "must be a list" if tensor.data is not None else "is required")
    flat: list[Any] = []
    for item in tensor.data:
        flat += item if isinstance(item, list) else [item]
    if not all(isinstance(text, str) for text in flat):
        raise _wrong(place, "data", "must hold texts")
    return tuple(flat)


def _framed(data: memoryview, place: int) -> tuple[str, ...]:
    """Texts with their lengths before them."""
    texts, at = [], 0
    try:
        while at < len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if at + length > len(data):
                raise _wrong(place, "data", "an element is longer than the tensor's bytes")
            texts.append(str(data[at : at + length], "utf-8"))
            at += length
    except struct.error:
        raise _wrong(place, "data", "the tensor's bytes end within a length") from None
    except UnicodeDecodeError:
        raise _wrong(place, "data", f"element {len(texts)} is not UTF-8") from None
    return tuple(texts)


def write(document: dict[str, Any], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """An answer.

    Args:
        document: its fields but `outputs`.
        outputs: the tensors.
    Returns: the body, and how much of it is JSON; None: all of it.
    """
    told, behind = [], []
    for output in outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": _datatype(output), "shape": output.shape}
        if output.binary:
            behind.append(_bytes(output))
            entry["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            entry["data"] = output.data.ravel() if isinstance(output.data, np.ndarray) else output.data
        told.append(entry)
    head = orjson.dumps(document | {"outputs": told}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *behind]), len(head)) if behind else (head, None)


def _datatype(output: Output) -> str:
    return _DATATYPES[output.data.dtype.kind] if isinstance(output.data, np.ndarray) else "BYTES"


def _bytes(output: Output) -> bytes:
    if isinstance(output.data, np.ndarray):
        return output.data.astype(output.data.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [text.encode() for text in output.data]
    return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))
