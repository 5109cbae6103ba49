"""What an ONNX file would make a runtime do beyond computing, read from its bytes before any runtime sees it.

ONNX Runtime resolves external tensor data and loads vendor operators by itself. A bundle may hold neither, so this
walks the protobuf wire format of onnx.proto just far enough to find them; `onnx` itself is not needed online.
"""

from collections.abc import Iterator
from typing import Final

from service.errors import GraphMismatch

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx"})
ORT_FORMAT_MARK: Final = b"ORTM"

# message -> field number -> message inside, for every way to reach a node or a tensor (onnx.proto)
_INSIDE: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NODE_OPERATOR, _NODE_DOMAIN, _EXTERNAL_DATA, _DATA_LOCATION = 4, 7, 13, 14


def check_self_contained(raw: bytes, *, name: str) -> None:
    """Refuse an ONNX file that reads other files or needs operators outside the standard.

    Args:
        raw: the file's bytes.
        name: names the file in errors.
    Raises:
        GraphMismatch: not ONNX, external tensor data, or an operator of another domain.
    """
    try:
        _check(raw, name)
    except (IndexError, ValueError) as error:
        raise GraphMismatch(f"{name}: not an ONNX file: {error}") from error


def _check(raw: bytes, name: str) -> None:
    if raw[4:8] == ORT_FORMAT_MARK:
        raise ValueError("it is in ORT format")
    waiting: list[tuple[str, memoryview]] = [("model", memoryview(raw))]
    graphs = 0
    while waiting:
        kind, message = waiting.pop()
        graphs += kind == "graph"
        operator = domain = ""
        for field, value in fields(message):
            if kind == "tensor" and _is_external(field, value):
                raise GraphMismatch(f"{name}: a tensor's data lies outside the file")
            if isinstance(value, int):
                continue
            if kind == "node" and field == _NODE_OPERATOR:
                operator = bytes(value).decode(errors="replace")
            if kind == "node" and field == _NODE_DOMAIN:
                domain = bytes(value).decode(errors="replace")
            if field in _INSIDE[kind]:
                waiting.append((_INSIDE[kind][field], value))
        if domain not in STANDARD_DOMAINS:
            raise GraphMismatch(f"{name}: operator {domain}.{operator} is not a standard ONNX operator")
    if not graphs:
        raise ValueError("it holds no graph")


def _is_external(field: int, value: int | memoryview) -> bool:
    return field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field's number with its varint, or with its bytes; fixed-width fields count as bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == 0:
            number, place = _varint(message, place)
            yield tag >> 3, number
            continue
        if wire == 2:
            size, place = _varint(message, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"protobuf wire type {wire}")
        if place + size > len(message):
            raise ValueError("it ends early")
        yield tag >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a protobuf number is too long")
