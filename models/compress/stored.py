"""Weights that a graph computes with in float32, stored in 8 bits: a quarter of the bytes.

What is left in float32 by int8 (positions, heads that see one row an item, maps of attention products) is restored by
two nodes of constants, which a runtime folds into one float32 constant when it loads the graph: nothing is slower.
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.compress.int8 import drop_unused
from models.compress.token_table import quantise_rows

MIN_VALUES = 4096
"""Smaller constants stay as they are."""


def store_weights(model: onnx.ModelProto, *, min_values: int = MIN_VALUES) -> onnx.ModelProto:
    """A copy of the graph whose large float32 initializers of two or more dimensions are int8 rows with a scale each.

    Args:
        model: a graph.
        min_values: fewest numbers of a constant that is stored so.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    large = [tensor for tensor in result.graph.initializer if _is_large(tensor, min_values)]
    nodes = [node for tensor in large for node in _restored(result.graph, tensor)]
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in {each.name for each in large}]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    body = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend([*nodes, *body])
    drop_unused(result.graph)
    onnx.checker.check_model(result)
    return result


def _is_large(tensor: onnx.TensorProto, min_values: int) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and int(np.prod(tensor.dims)) >= min_values


def _restored(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> list[onnx.NodeProto]:
    """Nodes that write the constant under its own name."""
    values: npt.NDArray[np.float32] = np.asarray(numpy_helper.to_array(tensor), np.float32)
    rows = quantise_rows(values.reshape(-1, values.shape[-1]))
    name = f"{tensor.name}/stored"
    scales = rows.scales.reshape(*values.shape[:-1], 1)
    graph.initializer.append(numpy_helper.from_array(rows.levels.reshape(values.shape), f"{name}/levels"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
    return [
        helper.make_node("Cast", [f"{name}/levels"], [f"{name}/float"], name=f"{name}/float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}/float", f"{name}/scales"], [tensor.name], name=tensor.name),
    ]
