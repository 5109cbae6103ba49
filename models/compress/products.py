"""The matrix products of a graph that int8 is for: those with a constant weight.

B items, T tokens, K inner dimension, N outputs.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Product:
    """`output = source @ weight + bias`, found in a graph as a Gemm, or as a MatMul and the Add after it.

    Attributes:
        name: the weight's initializer; the torch parameter's name where the exporter kept it.
        source: the tensor multiplied, [..., K].
        output: the tensor written, [..., N].
        weight: float32 [K, N].
        bias: float32 [N] or None.
        nodes: names of the tensors whose nodes this product replaces; `output` is the last.
        flat: the source is [rows, K] (a Gemm); else it may have any rank.
    """

    name: str
    source: str
    output: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    nodes: tuple[str, ...]
    flat: bool


def constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Every constant tensor of a graph, by name: initializers, Constant nodes and what Identity makes of them."""
    found: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def find_products(graph: onnx.GraphProto) -> tuple[Product, ...]:
    """The products with a constant float32 [K, N] weight, in graph order.

    Args:
        graph: a graph sorted topologically, as ONNX demands.
    Returns: one `Product` for each Gemm (plain, or with a transposed weight) and MatMul found.
    """
    known = constants(graph)
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    adds = {name: node for node in graph.node if node.op_type == "Add" for name in node.input if uses[name] == 1}
    found = (_product(node, known, adds) for node in graph.node if node.op_type in ("Gemm", "MatMul"))
    return tuple(product for product in found if product is not None)


def _product(node: onnx.NodeProto, known: dict[str, Array], adds: dict[str, onnx.NodeProto]) -> Product | None:
    weight = known.get(node.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or node.input[0] in known:
        return None
    return _gemm(node, weight, known) if node.op_type == "Gemm" else _matmul(node, weight, known, adds)


def _gemm(node: onnx.NodeProto, weight: Array, known: dict[str, Array]) -> Product | None:
    settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
    bias = known.get(node.input[2]) if len(node.input) > 2 else None
    if not plain or (len(node.input) > 2 and (bias is None or bias.ndim != 1)):
        return None
    matrix = weight.T if settings.get("transB", 0) else weight
    return _made(node, matrix, bias, (node.output[0],), flat=True)


def _matmul(
    node: onnx.NodeProto, weight: Array, known: dict[str, Array], adds: dict[str, onnx.NodeProto]
) -> Product | None:
    add = adds.get(node.output[0])
    if add is not None:
        other = next(name for name in add.input if name != node.output[0])
        bias = known.get(other)
        if bias is not None and bias.shape == weight.shape[1:]:
            return _made(node, weight, bias, (node.output[0], add.output[0]), flat=False)
    return _made(node, weight, None, (node.output[0],), flat=False)


def _made(node: onnx.NodeProto, weight: Array, bias: Array | None, nodes: tuple[str, ...], *, flat: bool) -> Product:
    return Product(
        name=node.input[1],
        source=node.input[0],
        output=nodes[-1],
        weight=np.ascontiguousarray(weight, np.float32),
        bias=None if bias is None else np.ascontiguousarray(bias, np.float32),
        nodes=nodes,
        flat=flat,
    )
