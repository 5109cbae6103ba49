"""The rows of a bag of n-grams as int8, one float scale a row: a quarter of the bytes, in any precision.

The scales go into the weights by which rows are added up, so that no row is multiplied by itself:

    weights @ table[places]   becomes   (weights * scales[places]) @ levels[places]

B items, N n-grams an item, R rows, W width.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.compress.int8 import drop_unused
from models.compress.products import constants
from models.compress.token_table import QuantisedRows, quantise_rows


def quantise_bag_table(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph whose rows that are looked up to be added up are int8; the same graph where there are none.

    Args:
        model: a graph with a Gather of places int64 [B, N] on a constant float32 [R, W], axis 0, which only a MatMul
            with weights float32 [B, 1, N] on its left reads.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = constants(result.graph)
    lookups = {
        node.output[0]: node
        for node in result.graph.node
        if node.op_type == "Gather" and _axis(node) == 0 and _is_table(known.get(node.input[0]))
    }
    sums = {node.input[1]: node for node in result.graph.node if node.op_type == "MatMul" and node.input[1] in lookups}
    readers = [name for node in result.graph.node for name in node.input]
    bags = {name for name in sums if readers.count(name) == 1}
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.output[0] in bags:
            rows = quantise_rows(np.asarray(known[node.input[0]], np.float32))
            nodes.extend(_int8_lookup(result.graph, node, rows))
        elif node.op_type == "MatMul" and node.input[1] in bags:
            nodes.extend(_scaled_sum(node))
        else:
            nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    drop_unused(result.graph)
    onnx.checker.check_model(result)
    return result


def _is_table(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 2


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _int8_lookup(graph: onnx.GraphProto, node: onnx.NodeProto, rows: QuantisedRows) -> Iterator[onnx.NodeProto]:
    """The rows' levels as floats under the old name, and beside them their scales, float32 [B, 1, N]."""
    table, places = node.input[0], node.input[1]
    output = node.output[0]
    levels, scales, one = f"{table}/int8/levels", f"{table}/int8/scales", f"{table}/int8/one"
    graph.initializer.append(numpy_helper.from_array(rows.levels, levels))
    graph.initializer.append(numpy_helper.from_array(rows.scales[:, 0], scales))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), one))
    yield helper.make_node("Gather", [levels, places], [f"{output}/levels"])
    yield helper.make_node("Cast", [f"{output}/levels"], [output], to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [scales, places], [f"{output}/flat_scales"])
    yield helper.make_node("Unsqueeze", [f"{output}/flat_scales", one], [f"{output}/scales"])


def _scaled_sum(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    weights, rows = node.input[0], node.input[1]
    yield helper.make_node("Mul", [weights, f"{rows}/scales"], [f"{rows}/weights"])
    yield helper.make_node("MatMul", [f"{rows}/weights", rows], [node.output[0]], name=node.name)
