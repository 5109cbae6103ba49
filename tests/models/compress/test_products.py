"""Which products of a graph count as products with a constant weight."""

import numpy as np
import onnx
from onnx import helper

from models.compress.products import find_products
from models.export.stages import ExportedStage

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)
BIAS = np.array([1, -1], np.float32)
IO = {"inputs": {"x": ["N", 3]}, "outputs": {"y": ["N", 2]}}


def test_a_plain_gemm_is_found_with_its_bias(build):
    model = build([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": WEIGHT, "b": BIAS}, **IO)
    (product,) = find_products(model.graph)
    assert (product.name, product.source, product.output, product.flat) == ("w", "x", "y", True)
    assert np.array_equal(product.weight, WEIGHT)
    assert product.bias is not None
    assert np.array_equal(product.bias, BIAS)


def test_a_transposed_weight_comes_as_inner_by_outputs(build):
    model = build([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": WEIGHT.T.copy()}, **IO)
    (product,) = find_products(model.graph)
    assert np.array_equal(product.weight, WEIGHT)
    assert product.bias is None


def test_a_scaled_or_transposed_gemm_is_left_alone(build):
    scaled = build([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0)], {"w": WEIGHT}, **IO)
    assert find_products(scaled.graph) == ()
    turned = build(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)],
        {"w": WEIGHT},
        inputs={"x": [3, "N"]},
        outputs={"y": ["N", 2]},
    )
    assert find_products(turned.graph) == ()


def test_a_matmul_and_the_add_after_it_are_one_product(build):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["b", "m"], ["y"])]
    dims = {"inputs": {"x": ["B", "T", 3]}, "outputs": {"y": ["B", "T", 2]}}
    (product,) = find_products(build(nodes, {"w": WEIGHT, "b": BIAS}, **dims).graph)
    assert (product.output, product.nodes, product.flat) == ("y", ("m", "y"), False)


def test_a_matmul_whose_result_is_also_an_output_keeps_its_add(build):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    model = build(nodes, {"w": WEIGHT, "b": BIAS}, inputs={"x": ["N", 3]}, outputs={"y": ["N", 2], "m": ["N", 2]})
    (product,) = find_products(model.graph)
    assert (product.output, product.bias) == ("m", None)


def test_products_of_two_activations_are_not_found(build):
    model = build(
        [helper.make_node("MatMul", ["x", "z"], ["y"])],
        {},
        inputs={"x": ["N", 3], "z": [3, 2]},
        outputs={"y": ["N", 2]},
    )
    assert find_products(model.graph) == ()


def test_every_linear_layer_of_a_student_is_found_by_its_parameter_name(exported: tuple[ExportedStage, ...]):
    names = {product.name for product in find_products(onnx.load(exported[1].path).graph)}
    layer = {f"layers.0.{part}.weight" for part in ("query", "key", "value", "output", "up", "down")}
    assert layer | {"exit.inner.weight", "exit.logits.weight"} == names
