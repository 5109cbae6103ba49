"""Shape arithmetic made short: fewer nodes, the same numbers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.export.shapes import shorten_shapes

FIRST = {"x": np.zeros((2, 7, 4), np.float32), "attention_mask": np.ones((2, 7), np.int64)}
SECOND = {"x": np.zeros((3, 5, 4), np.float32), "attention_mask": np.ones((3, 5), np.int64)}


def _model(nodes, constants, *, output: list[str | int], mask: bool = True) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", 4])]
    if mask:
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "T"]))
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _run(model: onnx.ModelProto, items: int, tokens: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(items, tokens, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}
    feeds = {"x": x, "attention_mask": np.ones((items, tokens), np.int64)}
    return session.run(["y"], {name: feeds[name] for name in names})[0]


def _dim(source: str, at: str, name: str) -> list[onnx.NodeProto]:
    """As an exporter writes it: the shape, one number of it, as a tensor of one."""
    return [
        helper.make_node("Shape", [source], [f"{name}/all"]),
        helper.make_node("Gather", [f"{name}/all", at], [f"{name}/one"]),
        helper.make_node("Unsqueeze", [f"{name}/one", "zero"], [name]),
    ]


@pytest.fixture
def there_and_back() -> onnx.ModelProto:
    """Flat and back, then heads apart."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        *_dim("x", "at0", "b"),
        *_dim("attention_mask", "at1", "t"),
        helper.make_node("Concat", ["b", "t", "four"], ["back"], axis=0),
        helper.make_node("Reshape", ["rows", "back"], ["again"]),
        helper.make_node("Neg", ["again"], ["negative"]),
        helper.make_node("Concat", ["b", "t", "two", "two"], ["heads"], axis=0),
        helper.make_node("Reshape", ["negative", "heads"], ["y"]),
    ]
    constants = {"flat": [-1, 4], "at0": 0, "at1": 1, "zero": [0], "four": [4], "two": [2]}
    return _model(nodes, constants, output=["B", "T", 2, 2])


def test_the_numbers_stay_and_most_nodes_go(there_and_back: onnx.ModelProto):
    short = shorten_shapes(there_and_back, FIRST, SECOND)
    assert [node.op_type for node in short.graph.node] == ["Shape", "Concat", "Neg", "Reshape"]
    for items, tokens in ((1, 1), (2, 7), (5, 11)):
        assert np.array_equal(_run(short, items, tokens), _run(there_and_back, items, tokens))


def test_a_number_that_is_neither_constant_nor_b_nor_t_is_left_alone():
    nodes = [
        *_dim("attention_mask", "at1", "t"),
        helper.make_node("Mul", ["t", "four"], ["wide"]),
        *_dim("x", "at0", "b"),
        helper.make_node("Concat", ["b", "wide"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    model = _model(nodes, {"at0": 0, "at1": 1, "zero": [0], "four": [4]}, output=["B", "W"])
    short = shorten_shapes(model, FIRST, SECOND)
    assert "Mul" in [node.op_type for node in short.graph.node]
    assert np.array_equal(_run(short, 3, 6), _run(model, 3, 6))


def test_a_reshape_that_copies_a_dim_keeps_what_it_reads():
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Reshape", ["rows", "copying"], ["y"]),
    ]
    model = _model(nodes, {"flat": [-1, 4], "copying": [0, 2, 2]}, output=["N", 2, 2])
    short = shorten_shapes(model, FIRST, SECOND)
    assert len(short.graph.node) == 2
    assert np.array_equal(_run(short, 3, 6), _run(model, 3, 6))


def test_a_graph_without_a_mask_is_as_it_was():
    model = _model([helper.make_node("Neg", ["x"], ["y"])], {}, output=["B", "T", 4], mask=False)
    assert shorten_shapes(model, FIRST, SECOND) is model


def test_a_students_stages_hold_no_gathered_dims(exported):
    for item in exported:
        operators = [node.op_type for node in onnx.load(item.path).graph.node]
        assert operators.count("Shape") <= 3
        assert operators.count("Concat") <= 5


def test_of_two_texts_each_length_is_read_from_its_own_mask() -> None:
    def feeds(items: int, first: int, second: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng(0).normal(size=(items, first, second)).astype(np.float32)
        return {
            "x": x,
            "first_mask": np.ones((items, first), np.int64),
            "second_mask": np.ones((items, second), np.int64),
        }

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "Q", "T"])]
    inputs += [
        helper.make_tensor_value_info(f"{side}_mask", TensorProto.INT64, ["B", dim])
        for side, dim in (("first", "Q"), ("second", "T"))
    ]
    nodes = [
        *_dim("x", "at0", "b"),
        *_dim("x", "at1", "q"),
        *_dim("x", "at2", "t"),
        helper.make_node("Concat", ["b", "t", "q", "one"], ["swapped"], axis=0),
        helper.make_node("Reshape", ["x", "swapped"], ["y"]),
    ]
    constants = {"at0": 0, "at1": 1, "at2": 2, "zero": [0], "one": [1]}
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", "Q", 1])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    short = shorten_shapes(model, feeds(2, 7, 11), feeds(3, 5, 9))
    read = [(node.input[0], node.attribute[0].i) for node in short.graph.node if node.op_type == "Shape"]
    assert [name for name, _ in read] == ["first_mask", "second_mask", "first_mask"]
    assert not [node for node in short.graph.node if node.op_type in ("Gather", "Unsqueeze")]
    session = onnxruntime.InferenceSession(short.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(["y"], feeds(4, 6, 8))[0].shape == (4, 8, 6, 1)
