"""Shape arithmetic made short: what an exporter spells in a dozen small nodes, one node can say.

For every reshape and slice an exporter writes nodes that take B and T apart and join them again; on a single text
these cost as much as the arithmetic proper. The graph is run at two shapes, and a shape tensor each of whose numbers
is a constant, B or T at both is rebuilt from the shape of `attention_mask` alone (of two texts apart: from those of
their masks). The exported graph is compared with torch at further shapes afterwards.

B items, T tokens (of the second text, where there are two apart), Q tokens of the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from models.compress.int8 import drop_unused
from models.compress.products import constants

MASK: Final = "attention_mask"
_READERS: Final[Mapping[str, tuple[int, ...]]] = {"Reshape": (1,), "Slice": (1, 2), "Expand": (1,)}
"""Which inputs of these operators are shapes or bounds."""

Feeds = Mapping[str, npt.NDArray[Any]]
Parts = tuple[int | str, ...]
Dims = Mapping[str, tuple[str, int]]
"""Where each open dim can be seen: in which input, and at which of its places."""

_ONE_TEXT: Final[Dims] = {"B": (MASK, 0), "T": (MASK, 1)}
_TWO_TEXTS: Final[Dims] = {"B": ("first_mask", 0), "Q": ("first_mask", 1), "T": ("second_mask", 1)}


def shorten_shapes(model: onnx.ModelProto, first: Feeds, second: Feeds) -> onnx.ModelProto:
    """A graph that computes the same with fewer nodes.

    Args:
        model: a graph that reads `attention_mask` [B, T], or `first_mask` [B, Q] and `second_mask` [B, T].
        first, second: inputs of two shapes whose numbers all differ from one another.
    """
    dims = _dims_of(model.graph)
    if dims is None:
        return model
    known = constants(model.graph)
    wanted = [name for name in _shape_tensors(model.graph) if name not in known]
    states = [node.input[0] for node in model.graph.node if node.op_type == "Reshape"]
    states += [node.output[0] for node in model.graph.node if node.op_type == "Reshape"]
    seen = [_observe(model, dict.fromkeys([*wanted, *states]), feeds) for feeds in (first, second)]
    sizes = [{dim: feeds[mask].shape[at] for dim, (mask, at) in dims.items()} for feeds in (first, second)]
    parts = {name: _parts([run[name] for run in seen], sizes) for name in wanted}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _replace_shapes(result.graph, {name: found for name, found in parts.items() if found is not None}, dims)
    _drop_reshapes(result.graph, {name: tuple(run[name].shape for run in seen) for name in states})
    _drop_dead(result.graph)
    onnx.checker.check_model(result)
    return result


def _dims_of(graph: onnx.GraphProto) -> Dims | None:
    inputs = {entry.name for entry in graph.input}
    return next((dims for dims in (_ONE_TEXT, _TWO_TEXTS) if {mask for mask, _ in dims.values()} <= inputs), None)


def _shape_tensors(graph: onnx.GraphProto) -> list[str]:
    found = (node.input[at] for node in graph.node for at in _READERS.get(node.op_type, ()) if at < len(node.input))
    return list(dict.fromkeys(found))


def _observe(model: onnx.ModelProto, names: Mapping[str, None], feeds: Feeds) -> dict[str, npt.NDArray[Any]]:
    """The values of inner tensors on one input."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = {entry.name for entry in model.graph.input}
    present = {entry.name for entry in watched.graph.output}
    inner = [name for name in names if name not in inputs]
    if not inner:
        return {name: feeds[name] for name in names}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(inner, session.run(inner, dict(feeds)), strict=True))
    return values | {name: feeds[name] for name in names if name in inputs}


def _parts(values: Sequence[npt.NDArray[Any]], sizes: Sequence[Mapping[str, int]]) -> Parts | None:
    """What each number of a shape tensor is: a constant or the name of a dim; None where one is something else."""
    if any(value.dtype != np.int64 or value.ndim != 1 for value in values) or len({len(v) for v in values}) != 1:
        return None
    found: list[int | str] = []
    for numbers in zip(*(value.tolist() for value in values), strict=True):
        if len(set(numbers)) == 1:
            found.append(int(numbers[0]))
            continue
        dim = next((dim for dim in sizes[0] if numbers == tuple(each[dim] for each in sizes)), None)
        if dim is None:
            return None
        found.append(dim)
    return tuple(found)


def _replace_shapes(graph: onnx.GraphProto, parts: Mapping[str, Parts], dims: Dims) -> None:
    """Let every reader of a shape tensor read its short form."""
    made: dict[Parts, str] = {}
    nodes: list[onnx.NodeProto] = []
    for found in dict.fromkeys(parts.values()):
        made[found] = "short/" + "_".join(map(str, found))
        nodes.extend(_short(graph, found, made[found], dims))
    for node in graph.node:
        for at in _READERS.get(node.op_type, ()):
            if at < len(node.input) and node.input[at] in parts:
                node.input[at] = made[parts[node.input[at]]]
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old])


def _short(graph: onnx.GraphProto, parts: Parts, name: str, dims: Dims) -> list[onnx.NodeProto]:
    """Nodes that write a shape: runs of constants, and of dims that stand side by side in one input, joined."""
    runs: list[list[int | str]] = []
    for part in parts:
        if runs and _continues(runs[-1][-1], part, dims):
            runs[-1].append(part)
        else:
            runs.append([part])
    names = [name] if len(runs) == 1 else [f"{name}/{at}" for at in range(len(runs))]
    nodes: list[onnx.NodeProto] = []
    for output, run in zip(names, runs, strict=True):
        if isinstance(run[0], int):
            graph.initializer.append(numpy_helper.from_array(np.array(run, np.int64), output))
        else:
            mask, begin = dims[run[0]]
            nodes.append(helper.make_node("Shape", [mask], [output], name=output, start=begin, end=begin + len(run)))
    return nodes if len(runs) == 1 else [*nodes, helper.make_node("Concat", names, [name], name=name, axis=0)]


def _continues(before: int | str, part: int | str, dims: Dims) -> bool:
    """Whether `part` may stand in one run with what is before it."""
    if isinstance(before, int) or isinstance(part, int):
        return isinstance(before, int) and isinstance(part, int)
    (mask, place), (next_mask, next_place) = dims[before], dims[part]
    return mask == next_mask and next_place == place + 1


def _drop_reshapes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> None:
    """Reshape what was reshaped from its origin, and drop reshapes to the shape that is there already."""
    known = constants(graph)
    origin: dict[str, str] = {}
    outputs = {entry.name for entry in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [origin.get(name, name) if node.op_type != "Reshape" else name for name in node.input]
        if node.op_type == "Reshape":
            node.input[0] = origin.get(node.input[0], node.input[0])
            # subtle: a 0 in a shape copies a dim of the tensor that is read, so that tensor must stay
            copies = node.input[1] in known and 0 in known[node.input[1]]
            source = node.input[0] if copies else _first_source(node.input[0], kept)
            node.input[0] = source
            if shapes.get(source) == shapes[node.output[0]] and node.output[0] not in outputs:
                origin[node.output[0]] = source
                continue
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _first_source(name: str, nodes: Sequence[onnx.NodeProto]) -> str:
    """The tensor that a chain of reshapes began with; `nodes` are already read through to their own origin."""
    writer = next((node for node in nodes if name in node.output), None)
    return writer.input[0] if writer is not None and writer.op_type == "Reshape" else name


def _drop_dead(graph: onnx.GraphProto) -> None:
    """Take out nodes that nothing reads, and constants that no node reads."""
    needed = {entry.name for entry in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    drop_unused(graph)
