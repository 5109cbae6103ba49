"""The part of a stage's graph that later stages need: the graph without its exit head.

ONNX Runtime computes every output of a graph at every run, asked for or not. Where nobody may leave, the trunk alone is
run. This works on the protobuf wire format of onnx.proto, since `onnx` itself is not needed online: nodes and weights
are carried over byte for byte.
"""

from collections.abc import Collection, Iterator
from typing import Final

from service.runtime.backends.onnx_format import fields

_GRAPH: Final = 7
_NODE, _WEIGHT, _INPUT, _OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _ATTRIBUTE = 1, 2, 5
_INNER_GRAPHS: Final = (6, 11)
# the field that holds a weight's name, and an input's or output's
_NAMES: Final = {_WEIGHT: 8, _INPUT: 1, _OUTPUT: 1}
Field = tuple[int, int | memoryview]


def trunk_of(raw: bytes, *, outputs: Collection[str]) -> bytes | None:
    """An ONNX file that writes only some of another's outputs.

    Args:
        raw: a file that `check_self_contained` let pass.
        outputs: their names.
    Returns: the file; None where there is nothing to leave out, or nodes hold graphs of their own, which may read any
        value.
    """
    model = list(fields(memoryview(raw)))
    graph = [each for number, value in model if number == _GRAPH for each in fields(_message(value))]
    nodes = [_message(value) for number, value in graph if number == _NODE]
    written = {_name(each) for each in graph if each[0] == _OUTPUT}
    if not outputs or not written > set(outputs) or any(_holds_graph(node) for node in nodes):
        return None
    kept = _needed(nodes, outputs)
    read = {name for node in kept for name in _texts(node, _NODE_INPUT)}
    whole = {_WEIGHT: read, _INPUT: read, _OUTPUT: set(outputs)}
    rest = [each for each in graph if each[0] != _NODE and (each[0] not in whole or _name(each) in whole[each[0]])]
    part = b"".join([*(_field(_NODE, node) for node in kept), *(_field(*each) for each in rest)])
    return b"".join([*(_field(*each) for each in model if each[0] != _GRAPH), _field(_GRAPH, part)])


def _needed(nodes: list[memoryview], outputs: Collection[str]) -> list[memoryview]:
    """The nodes that outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(_texts(node, _NODE_OUTPUT)):
            wanted.update(_texts(node, _NODE_INPUT))
            kept.append(node)
    return kept[::-1]


def _holds_graph(node: memoryview) -> bool:
    attributes = [_message(value) for number, value in fields(node) if number == _ATTRIBUTE]
    return any(number in _INNER_GRAPHS for attribute in attributes for number, _ in fields(attribute))


def _name(field: Field) -> str:
    return next(_texts(_message(field[1]), _NAMES[field[0]]), "")


def _texts(message: memoryview, wanted: int) -> Iterator[str]:
    return (bytes(_message(value)).decode() for number, value in fields(message) if number == wanted)


def _message(value: int | memoryview) -> memoryview:
    assert not isinstance(value, int), "checked with the file"
    return value


def _field(number: int, value: int | bytes | memoryview) -> bytes:
    """A field on the wire: a number, or bytes after their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return b"".join([_varint(number << 3 | 2), _varint(len(value)), value])


def _varint(value: int) -> bytes:
    """A number, seven bits a byte, the lowest first.

    >>> _varint(300).hex()
    'ac02'
    """
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])
