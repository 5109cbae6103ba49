"""A graph without its exit head: the same numbers, none of the head's nodes and weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.runtime.backends.trunk import trunk_of

ROWS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def model(*extra: onnx.NodeProto) -> onnx.ModelProto:
    """hidden = x * scale; logits = (hidden + shift) * mask, by way of more than 127 bytes of weights."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["hidden"]),
        helper.make_node("Add", ["hidden", "shift"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "mask"], ["logits"]),
        *extra,
    ]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("x", "mask")}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("hidden", "logits")]
    weights = {"scale": np.full((1, 2), 3.0, np.float32), "shift": np.ones((1, 2), np.float32)}
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.zeros(300, np.float32), "unused"))
    graph = helper.make_graph(nodes, "two", list(values.values()), outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cut(whole: onnx.ModelProto, *outputs: str) -> onnx.ModelProto | None:
    raw = trunk_of(whole.SerializeToString(), outputs=outputs)
    return None if raw is None else onnx.load_from_string(raw)


def test_the_trunk_holds_what_its_outputs_need_and_nothing_else():
    whole = model()
    trunk = cut(whole, "hidden")
    assert trunk is not None
    onnx.checker.check_model(trunk, full_check=True)
    assert list(trunk.graph.node) == list(whole.graph.node[:1])
    assert [value.name for value in trunk.graph.input] == ["x"]
    assert [value.name for value in trunk.graph.output] == ["hidden"]
    assert list(trunk.graph.initializer) == list(whole.graph.initializer[:1])
    assert (trunk.ir_version, list(trunk.opset_import)) == (whole.ir_version, list(whole.opset_import))


def test_it_computes_the_same():
    trunk = cut(model(), "hidden")
    assert trunk is not None
    session = onnxruntime.InferenceSession(trunk.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": ROWS})[0], ROWS * 3)


def test_an_output_that_needs_everything_keeps_everything_it_reads():
    trunk = cut(model(), "logits")
    assert trunk is not None
    assert [node.output[0] for node in trunk.graph.node] == ["hidden", "shifted", "logits"]
    assert [value.name for value in trunk.graph.input] == ["x", "mask"]


@pytest.mark.parametrize("outputs", [(), ("hidden", "logits"), ("hidden", "other")])
def test_where_nothing_is_left_out_there_is_none(outputs):
    assert cut(model(), *outputs) is None


def test_nodes_that_hold_graphs_are_left_alone():
    inner = [
        helper.make_graph(
            [helper.make_node("Identity", ["shift"], [name])], name, [], [helper.make_empty_tensor_value_info(name)]
        )
        for name in ("then", "else")
    ]
    branch = helper.make_node("If", ["yes"], ["chosen"], then_branch=inner[0], else_branch=inner[1])
    assert cut(model(branch), "hidden") is None


def test_the_stages_of_a_student(classify_bundle):
    raw = (classify_bundle / "stages" / "00.int8.onnx").read_bytes()
    part = trunk_of(raw, outputs=("hidden",))
    assert part is not None
    assert len(part) < len(raw)
    ids = np.array([[2, 5, 6], [4, 3, 0]], np.int64)
    feeds = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    whole, trunk = (onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]) for each in (raw, part))
    named = {value.name: feeds[value.name] for value in trunk.get_inputs()}
    np.testing.assert_array_equal(trunk.run(["hidden"], named)[0], whole.run(["hidden"], feeds)[0])
