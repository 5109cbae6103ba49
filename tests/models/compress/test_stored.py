"""Float32 weights stored in 8 bits: fewer bytes, the same names, small constants untouched."""

import numpy as np
import onnx
from onnx import helper

from models.compress.stored import store_weights


def test_large_constants_are_stored_as_levels_and_small_ones_stay(build, run):
    draw = np.random.default_rng(0)
    weight, maps = (draw.normal(size=shape).astype(np.float32) for shape in ((64, 80), (2, 80, 40)))
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["inner"]),
        helper.make_node("Add", ["inner", "bias"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "maps"], ["y"]),
    ]
    model = build(
        nodes,
        {"weight": weight, "maps": maps, "bias": np.ones((1, 80), np.float32)},
        inputs={"x": ["B", 64]},
        outputs={"y": [2, "B", 40]},
    )
    small = store_weights(model)
    assert small.ByteSize() < 0.4 * model.ByteSize()
    kinds = {tensor.name: tensor.data_type for tensor in small.graph.initializer}
    assert kinds["bias"] == onnx.TensorProto.FLOAT
    assert kinds["maps/stored/levels"] == onnx.TensorProto.INT8
    x = draw.normal(size=(3, 64)).astype(np.float32)
    (before,), (after,) = run(model, x=x), run(small, x=x)
    assert np.abs(before - after).mean() < 0.02 * before.std()


def test_a_graph_without_large_constants_is_as_it_was(build):
    model = build(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        {"bias": np.ones((1, 4), np.float32)},
        inputs={"x": ["B", 4]},
        outputs={"y": ["B", 4]},
    )
    assert store_weights(model) == model
