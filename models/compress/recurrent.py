"""The weights of an LSTM as int8 levels with one float scale a row: a quarter of the bytes, the same arithmetic.

ONNX has no LSTM on integers, so the levels become floats again; the nodes for that read constants alone, which a
runtime computes once, when it loads the graph. Rounded are the weights; activations stay float32.

H states of a direction, N inputs.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.compress.int8 import drop_unused
from models.compress.products import constants
from models.compress.token_table import quantise_rows

_WEIGHTS: Final = (1, 2)
"""Which inputs of the operator are weights: of what it reads, float32 [2, 4H, N], and of its states, [2, 4H, H]."""


def round_recurrent(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph whose LSTM weights are int8 levels; the same graph where it has no LSTM.

    Args:
        model: a graph; weights that are no constants are left alone.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = constants(result.graph)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        for at in _WEIGHTS if node.op_type == "LSTM" else ():
            weight = known.get(node.input[at])
            if weight is not None and weight.dtype == np.float32:
                made = _restored(result.graph, node.input[at], np.asarray(weight, np.float32))
                nodes.extend(made)
                node.input[at] = made[-1].output[0]
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    _drop_constants(result.graph)
    drop_unused(result.graph)
    onnx.checker.check_model(result)
    return result


def _restored(graph: onnx.GraphProto, name: str, weight: npt.NDArray[np.float32]) -> list[onnx.NodeProto]:
    """Nodes that write the weight as its levels give it back."""
    rows = quantise_rows(weight.reshape(-1, weight.shape[-1]))
    levels, scales, floats, product = (f"{name}/int8/{part}" for part in ("levels", "scales", "floats", "product"))
    graph.initializer.append(numpy_helper.from_array(rows.levels.reshape(weight.shape), levels))
    graph.initializer.append(numpy_helper.from_array(rows.scales.reshape(*weight.shape[:-1], 1), scales))
    return [
        helper.make_node("Cast", [levels], [floats], to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, scales], [product]),
    ]


def _drop_constants(graph: onnx.GraphProto) -> None:
    """Take out Constant nodes that nothing reads, in place."""
    read = {name for node in graph.node for name in node.input}
    kept = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
