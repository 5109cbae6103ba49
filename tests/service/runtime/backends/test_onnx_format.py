"""What is found in ONNX files before a runtime opens them."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.errors import GraphMismatch
from service.runtime.backends.onnx_format import check_self_contained


def model(*nodes: onnx.NodeProto, weights=(), functions=(), domains=("",)) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B"])
    graph = helper.make_graph(list(nodes), "g", [value], [value], list(weights))
    imports = [helper.make_opsetid(domain, 17 if not domain else 1) for domain in domains]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions))


def add(domain: str = "") -> onnx.NodeProto:
    return helper.make_node("Add", ["x", "w"], ["y"], domain=domain)


def external(name: str = "w") -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    return tensor


def check(proto: onnx.ModelProto) -> None:
    check_self_contained(proto.SerializeToString(), name="00.onnx")


def branch(*nodes: onnx.NodeProto, weights=()) -> onnx.NodeProto:
    inner = helper.make_graph(list(nodes), "inner", [], [], list(weights))
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def test_a_plain_graph_passes():
    check(model(add(), add("ai.onnx"), weights=[numpy_helper.from_array(np.ones(4, np.float32), "w")]))


def test_a_domain_that_is_imported_and_not_used_passes():
    check(model(add(), domains=("", "com.microsoft")))


@pytest.mark.parametrize(
    "node", [add("com.microsoft"), branch(add("com.microsoft")), branch(branch(add("com.microsoft")))]
)
def test_an_operator_of_a_vendor_is_refused(node):
    with pytest.raises(GraphMismatch, match=r"00\.onnx: operator com\.microsoft\.Add"):
        check(model(add(), node))


def test_an_operator_inside_a_function_is_refused():
    function = helper.make_function("", "f", ["x"], ["y"], [add("evil")], [helper.make_opsetid("", 17)])
    with pytest.raises(GraphMismatch, match=r"evil\.Add"):
        check(model(add(), functions=[function]))


@pytest.mark.parametrize(
    "proto",
    [
        model(add(), weights=[external()]),
        model(branch(add(), weights=[external()])),
        model(helper.make_node("Constant", [], ["w"], value=external())),
    ],
    ids=["initializer", "subgraph", "constant"],
)
def test_data_outside_the_file_is_refused(proto):
    with pytest.raises(GraphMismatch, match="outside the file"):
        check(proto)


def test_data_outside_the_file_in_a_sparse_tensor_is_refused():
    proto = model(add())
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external())
    with pytest.raises(GraphMismatch, match="outside the file"):
        check(proto)


@pytest.mark.parametrize(
    "raw", [b"", b"not a graph at all", b"\x00" * 64, b"\x08" + b"\xff" * 12, b"\x00\x00\x00\x00ORTM1234"]
)
def test_what_is_not_onnx_is_refused(raw):
    with pytest.raises(GraphMismatch, match=r"00\.onnx: not an ONNX file"):
        check_self_contained(raw, name="00.onnx")


def test_a_file_that_ends_early_is_refused():
    raw = model(add(), weights=[numpy_helper.from_array(np.ones(64, np.float32), "w")]).SerializeToString()
    with pytest.raises(GraphMismatch):
        check_self_contained(raw[:-40], name="00.onnx")


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer_or_a_named_error(raw):
    try:
        check_self_contained(raw, name="00.onnx")
    except GraphMismatch as error:
        assert str(error).startswith("00.onnx: ")


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_gives_an_answer_or_a_named_error(place, value):
    raw = bytearray(model(add(), branch(add())).SerializeToString())
    raw[place % len(raw)] = value
    try:
        check_self_contained(bytes(raw), name="00.onnx")
    except GraphMismatch as error:
        assert str(error).startswith("00.onnx: ")
