"""Stages as one graph: the same numbers, none of the exits on the way."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.bundle.load import load_bundle
from service.bundle.manifest import Exit, Stage
from service.runtime.backends.onnxruntime import unsplit_session
from service.runtime.backends.stage import Execution
from service.runtime.backends.unsplit import Part, unsplit

ROWS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def stage(
    reads: str, factor: float, *extra: onnx.NodeProto, opset: int = 20, initializers: tuple[TensorProto, ...] = ()
) -> bytes:
    """hidden = what it reads * scale; logits = (hidden + shift) * mask, by way of more than 127 bytes of weights."""
    nodes = [
        helper.make_node("Mul", [reads, "scale"], ["hidden"], name="first"),
        helper.make_node("Add", ["hidden", "shift"], ["shifted"], name="second"),
        helper.make_node("Clip", ["shifted", "", "most"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "mask"], ["logits"]),
        *extra,
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in (reads, "mask")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("hidden", "logits")]
    weights = {"scale": np.full((1, 2), factor, np.float32), "shift": np.ones((1, 2), np.float32)}
    weights |= {"most": np.array(1e6, np.float32), "unused": np.zeros(300, np.float32)}
    made = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    inner = [helper.make_tensor_value_info("shifted", TensorProto.FLOAT, ["B", 2])]
    graph = helper.make_graph(nodes, "stage", values, outputs, [*made, *initializers], value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


def parts(first: bytes, second: bytes) -> list[Part]:
    return [
        Part(first, "00/", {"x": "x", "mask": "mask", "hidden": "00.hidden", "logits": "00.logits"}),
        Part(second, "01/", {"states": "00.hidden", "mask": "mask", "hidden": "01.hidden", "logits": "logits"}),
    ]


def joined(first: bytes, second: bytes) -> onnx.ModelProto | None:
    raw = unsplit(parts(first, second), outputs=("logits",))
    return None if raw is None else onnx.load_from_string(raw)


def test_it_holds_what_its_output_needs_and_nothing_else():
    model = joined(stage("x", 3.0), stage("states", 5.0))
    assert model is not None
    onnx.checker.check_model(model, full_check=True)
    assert [node.output[0] for node in model.graph.node] == [
        "00.hidden", "01.hidden", "01/shifted", "01/clipped", "logits",
    ]  # fmt: skip
    assert [value.name for value in model.graph.input] == ["x", "mask"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert [weight.name for weight in model.graph.initializer] == ["00/scale", "01/scale", "01/shift", "01/most"]


def test_it_computes_what_the_stages_do_one_after_another():
    model = joined(stage("x", 3.0), stage("states", 5.0))
    assert model is not None
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mask = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": ROWS, "mask": mask})[0], (ROWS * 15 + 1) * mask)


def _branch() -> onnx.NodeProto:
    then, other = (
        helper.make_graph(
            [helper.make_node("Identity", ["shift"], [name])], name, [], [helper.make_empty_tensor_value_info(name)]
        )
        for name in ("then", "else")
    )
    return helper.make_node("If", ["yes"], ["chosen"], then_branch=then, else_branch=other)


def _with_function() -> bytes:
    model = onnx.load_from_string(stage("states", 5.0))
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Same", ["a"], ["b"], [node], [helper.make_opsetid("", 20)]))
    return bytes(model.SerializeToString())


def _with_sparse() -> bytes:
    model = onnx.load_from_string(stage("states", 5.0))
    values, places = numpy_helper.from_array(np.ones(1, np.float32), "few"), numpy_helper.from_array(np.zeros(1, int))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "second", [stage("states", 5.0, _branch()), stage("states", 5.0, opset=21), _with_function(), _with_sparse()]
)
def test_what_is_unusual_is_left_in_stages(second):
    assert joined(stage("x", 3.0), second) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_stages_of_a_student(classify_bundle, precision):
    bundle = load_bundle(classify_bundle)
    manifest = bundle.manifest
    paths = [bundle.graph_path(precision, each.id) for each in manifest.stages]
    whole = unsplit_session(paths, manifest.stages, manifest.exits[-1], Execution())
    assert whole is not None
    ids = np.array([[2, 5, 6], [4, 3, 0]], np.int64)
    known = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    last = {}
    for each, path in zip(manifest.stages, paths, strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        values = session.run(list(each.outputs), {tensor: known[source] for tensor, source in each.inputs.items()})
        last = dict(zip(each.outputs, values, strict=True))
        known |= {f"{each.id}.{name}": value for name, value in last.items()}
    np.testing.assert_array_equal(whole.run(known)["logits"], last["logits"])


def _file(path, nodes, outputs) -> Path:
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("ids", "mask")]
    made = [helper.make_tensor_value_info(name, kind, ["B", "T"]) for name, kind in outputs]
    graph = helper.make_graph(nodes, "stage", ids, made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _session(tmp_path, *, passes: str) -> object:
    """Two stages, of which the first passes `passes` on to the second."""
    tensor = {"dtype": "int64", "dims": ("B", "T")}
    first = _file(tmp_path / "0", [helper.make_node("Add", ["ids", "mask"], ["sum"])], [(passes, TensorProto.INT64)])
    cast = helper.make_node("Cast", ["ids"], ["logits"], to=TensorProto.FLOAT)
    second = _file(tmp_path / "1", [cast], [("logits", TensorProto.FLOAT)])
    ids = {"ids": "input_ids", "mask": "attention_mask"}
    stages = (
        Stage.model_validate({"id": "00", "inputs": ids, "outputs": {passes: tensor}}),
        Stage.model_validate({"id": "01", "inputs": ids | {"ids": f"00.{passes}"}, "outputs": {"logits": tensor}}),
    )
    leave = Exit.model_validate({"id": "full", "stage": "01", "output": "logits", "depth": 1.0})
    return unsplit_session([first, second], stages, leave, Execution())


def test_a_stage_that_passes_on_what_it_was_given_is_left_by_itself(tmp_path):
    assert _session(tmp_path, passes="sum") is not None
    assert _session(tmp_path, passes="mask") is None


@pytest.mark.parametrize("raw", [b"\x3a\x04\x0a\x02\x18\x01", b"\x3a\x05\x0a\x03\x0a\x01\xff", b"\x38\x01"])
def test_what_onnx_proto_does_not_know(raw):
    with pytest.raises(ValueError):
        unsplit([Part(raw, "00/", {})], outputs=("logits",))


def test_large_students_are_left_in_stages(classify_bundle, monkeypatch):
    bundle = load_bundle(classify_bundle)
    manifest = bundle.manifest
    paths = [bundle.graph_path("int8", each.id) for each in manifest.stages]
    monkeypatch.setattr("service.runtime.backends.onnxruntime.MOST_UNSPLIT_BYTES", 1000)
    assert unsplit_session(paths, manifest.stages, manifest.exits[-1], Execution()) is None


def test_a_graph_that_does_not_load_joined_is_done_without(classify_bundle, monkeypatch):
    bundle = load_bundle(classify_bundle)
    manifest = bundle.manifest
    paths = [bundle.graph_path("int8", each.id) for each in manifest.stages]
    monkeypatch.setattr("service.runtime.backends.onnxruntime.unsplit", lambda parts, outputs: b"\x08\x01")
    assert unsplit_session(paths, manifest.stages, manifest.exits[-1], Execution()) is None
