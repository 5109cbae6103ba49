"""The token embedding table as int8 rows with one float scale a row: a quarter of the bytes, in any precision.

V vocabulary, H hidden.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.compress.int8 import WEIGHT_LEVELS, drop_unused
from models.compress.products import constants

INDICES = "input_ids"


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """s8 levels [V, H] and float32 scales [V, 1] with `levels * scales` near the table."""

    levels: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


def quantise_rows(table: npt.NDArray[np.float32]) -> QuantisedRows:
    """Round a table to s8 with one symmetric scale a row.

    Args:
        table: float32 [V, H].
    """
    peaks = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-8)
    scales = (peaks / WEIGHT_LEVELS).astype(np.float32)
    levels = np.clip(np.rint(table / scales), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    return QuantisedRows(levels, scales)


def quantise_token_table(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph whose table looked up by `input_ids` has int8 rows; the same graph where there is none.

    Args:
        model: a graph that reads `input_ids` with Gather on a constant float32 [V, H], axis 0.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = constants(result.graph)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        table = known.get(node.input[0]) if _is_lookup(node) else None
        if table is None or table.dtype != np.float32 or table.ndim != 2:
            nodes.append(node)
            continue
        nodes.extend(_int8_lookup(result.graph, node, quantise_rows(table.astype(np.float32))))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    drop_unused(result.graph)
    onnx.checker.check_model(result)
    return result


def _is_lookup(node: onnx.NodeProto) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[1] == INDICES and axis == 0


def _int8_lookup(graph: onnx.GraphProto, node: onnx.NodeProto, rows: QuantisedRows) -> list[onnx.NodeProto]:
    name = f"{node.input[0]}/int8"
    levels, scales = f"{name}/levels", f"{name}/scales"
    graph.initializer.append(numpy_helper.from_array(rows.levels, levels))
    graph.initializer.append(numpy_helper.from_array(rows.scales, scales))
    return [
        helper.make_node("Gather", [levels, INDICES], [f"{name}/row"]),
        helper.make_node("Cast", [f"{name}/row"], [f"{name}/row_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, INDICES], [f"{name}/row_scale"]),
        helper.make_node("Mul", [f"{name}/row_float", f"{name}/row_scale"], [node.output[0]]),
    ]
