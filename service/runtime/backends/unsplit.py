"""A pipeline's stages as one graph, for what goes to full depth anyway: no exit but the last, nothing handed from run
to run.

Nodes and weights are carried over as they are but for their names, so that the numbers are the stages' to the bit. This
works on the protobuf wire format of onnx.proto, since `onnx` itself is not needed online.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.runtime.backends.onnx_format import fields

_MODEL_METADATA, _FUNCTION, _OPSETS, _GRAPH = 14, 25, 8, 7
_NODE, _GRAPH_NAME, _WEIGHT, _INPUT, _OUTPUT, _SPARSE = 1, 2, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _ATTRIBUTE = 1, 2, 3, 5
_INNER_GRAPHS: Final = (6, 11)
# the field that holds a weight's name, and an input's or output's
_NAMES: Final = {_WEIGHT: 8, _INPUT: 1, _OUTPUT: 1}
Field = tuple[int, int | bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Part:
    """A stage's graph.

    Attributes:
        raw: a file that `check_self_contained` let pass.
        prefix: what the names of its inner tensors get in the whole, each part another.
        names: what its inputs and outputs are called in the whole, by tensor name; an input that no part before writes
            is one of the whole.
    """

    raw: bytes
    prefix: str
    names: Mapping[str, str]


def unsplit(parts: Sequence[Part], *, outputs: Collection[str]) -> bytes | None:
    """One ONNX file that computes what the parts do one after another.

    Args:
        parts: in order, at least one.
        outputs: which of their outputs it writes, by their names in the whole.
    Returns: the file; None where that cannot be said of these graphs: nodes hold graphs of their own, weights are
        sparse, there are functions, or operators are of different versions.
    Raises: ValueError: a file is not what onnx.proto says.
    """
    models = [list(fields(memoryview(part.raw))) for part in parts]
    graphs = [_inside(model) for model in models]
    if len({_opsets(model) for model in models}) > 1 or any(map(_is_unusual, models, graphs)):
        return None
    renamed = [list(_renamed(graph, part)) for graph, part in zip(graphs, parts, strict=True)]
    nodes = [_bytes(value) for graph in renamed for number, value in graph if number == _NODE]
    kept = _needed(nodes, outputs)
    read = {name for node in kept for name in _texts(node, _NODE_INPUT)}
    weights = [each for graph in renamed for each in graph if each[0] == _WEIGHT and _name(each) in read]
    written = {name for node in nodes for name in _texts(node, _NODE_OUTPUT)}
    inputs = {_name(each): each for graph in renamed for each in graph if each[0] == _INPUT}
    ends = {_name(each): each for graph in renamed for each in graph if each[0] == _OUTPUT}
    graph: list[Field] = [
        *((_NODE, node) for node in kept),
        (_GRAPH_NAME, b"unsplit"),
        *weights,
        *(each for name, each in inputs.items() if name in read and name not in written),
        *(each for name, each in ends.items() if name in outputs),
    ]
    model = [each for each in models[0] if each[0] not in (_GRAPH, _MODEL_METADATA)]
    return _message([*model, (_GRAPH, _message(graph))])


def _inside(model: Sequence[Field]) -> list[Field]:
    return [each for number, value in model if number == _GRAPH for each in fields(_bytes(value))]


def _opsets(model: Sequence[Field]) -> frozenset[bytes]:
    return frozenset(bytes(_bytes(value)) for number, value in model if number == _OPSETS)


def _is_unusual(model: Sequence[Field], graph: Sequence[Field]) -> bool:
    nodes = [_bytes(value) for number, value in graph if number == _NODE]
    sparse = any(number == _SPARSE for number, _ in graph)
    return sparse or any(number == _FUNCTION for number, _ in model) or any(map(_holds_graph, nodes))


def _holds_graph(node: memoryview) -> bool:
    attributes = [_bytes(value) for number, value in fields(node) if number == _ATTRIBUTE]
    return any(number in _INNER_GRAPHS for attribute in attributes for number, _ in fields(attribute))


def _renamed(graph: Sequence[Field], part: Part) -> Iterator[Field]:
    """The nodes, weights, inputs and outputs of a part under their names in the whole."""

    def name(value: int | bytes | memoryview) -> bytes:
        own = bytes(_bytes(value)).decode()
        # subtle: an input that a node leaves out has no name
        return part.names.get(own, part.prefix + own if own else "").encode()

    named = (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME)
    for number, value in graph:
        if number == _NODE:
            found = fields(_bytes(value))
            yield number, _message([(field, name(each) if field in named else each) for field, each in found])
        elif number in _NAMES:
            # subtle: of a field that may stand once the last one counts; what stands before is not touched
            own = name(_own_name(number, _bytes(value)))
            yield number, b"".join([_bytes(value), _field(_NAMES[number], own)])


def _needed(nodes: Sequence[memoryview], outputs: Collection[str]) -> list[memoryview]:
    """The nodes that outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(_texts(node, _NODE_OUTPUT)):
            wanted.update(_texts(node, _NODE_INPUT))
            kept.append(node)
    return kept[::-1]


def _name(field: Field) -> str:
    return bytes(_own_name(field[0], _bytes(field[1]))).decode()


def _own_name(kind: int, message: memoryview) -> memoryview:
    """The name of a weight, an input or an output."""
    return [memoryview(b""), *(_bytes(value) for number, value in fields(message) if number == _NAMES[kind])][-1]


def _texts(message: memoryview, wanted: int) -> Iterator[str]:
    return (bytes(_bytes(value)).decode() for number, value in fields(message) if number == wanted)


def _bytes(value: int | bytes | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where onnx.proto has none")
    return memoryview(value)


def _message(found: Sequence[Field]) -> bytes:
    return b"".join([_field(number, value) for number, value in found])


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
