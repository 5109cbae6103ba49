"""int8 graphs: near fp32, standard operators, one integer kernel each, and the same answer in any company."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from models.compress.int8 import Int8Settings, quantise_static, quantise_weight
from models.compress.ranges import Range
from models.compress.smoothing import capped, evened
from models.export.stages import ExportedStage, check_graph

EXACT = Int8Settings(percentile=100)
DRAW = np.random.default_rng(5)
WEIGHT = DRAW.normal(size=(8, 4)).astype(np.float32)
BIAS = DRAW.normal(size=4).astype(np.float32)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
def test_a_weight_is_within_half_a_step_of_its_levels(seed: int, inner: int, outputs: int):
    weight = np.random.default_rng(seed).normal(size=(inner, outputs)).astype(np.float32)
    made = quantise_weight(weight)
    assert np.all(np.abs(made.levels * made.scales - weight).max(axis=0) <= made.scales * 0.501)
    assert made.levels.min() >= -127


def test_a_column_of_zeros_stays_zero():
    made = quantise_weight(np.zeros((3, 2), np.float32))
    assert not made.levels.any()
    assert np.isfinite(made.scales).all()


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def _fused(path: Path, tmp_path: Path) -> Counter[str]:
    """The operators after ONNX Runtime has prepared the graph for this processor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return _operators(tmp_path / "fused.onnx")


@pytest.fixture
def matmul(build, tmp_path: Path) -> Path:
    """y = Relu(x @ W + b) on [B, T, 8], as MatMul and Add."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    dims = {"inputs": {"x": ["B", "T", 8]}, "outputs": {"y": ["B", "T", 4]}}
    path = tmp_path / "fp32.onnx"
    onnx.save(build(nodes, {"w": WEIGHT, "b": BIAS}, **dims), path)
    return path


def _x(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_a_matmul_of_any_rank_keeps_its_shape_and_values(matmul: Path, tmp_path: Path, run):
    int8 = tmp_path / "int8.onnx"
    assert quantise_static(matmul, int8, feeds=[{"x": _x((4, 9, 8))}], settings=EXACT) == ("w",)
    x = _x((3, 5, 8), seed=1)
    (before,), (after,) = run(matmul, x=x), run(int8, x=x)
    assert after.shape == (3, 5, 4)
    assert np.abs(after - before).max() < 0.05


def test_a_product_followed_by_relu_still_becomes_an_integer_kernel(matmul: Path, tmp_path: Path):
    int8 = tmp_path / "int8.onnx"
    quantise_static(matmul, int8, feeds=[{"x": _x((4, 9, 8))}], settings=EXACT)
    assert _fused(int8, tmp_path)["QGemm"] == 1


def test_values_beyond_the_range_are_clipped_not_wrapped(matmul: Path, tmp_path: Path, run):
    int8 = tmp_path / "int8.onnx"
    quantise_static(matmul, int8, feeds=[{"x": np.array([[[-1, 1] * 4]], np.float32)}], settings=EXACT)
    (far,), (edge,) = (run(int8, x=np.full((1, 1, 8), value, np.float32)) for value in (1e6, 1.1))
    assert np.allclose(far, edge)


def test_kept_weights_stay_float(matmul: Path, tmp_path: Path):
    int8 = tmp_path / "int8.onnx"
    settings = Int8Settings(keep=frozenset({"w"}))
    assert quantise_static(matmul, int8, feeds=[{"x": _x((1, 2, 8))}], settings=settings) == ()
    assert _operators(int8) == _operators(matmul)


def test_smoothing_helps_where_one_channel_is_far_larger(matmul: Path, tmp_path: Path, run):
    def wide(seed: int) -> np.ndarray:
        values = _x((4, 16, 8), seed)
        values[..., 3] *= 200
        return values

    errors = []
    for number, smoothings in enumerate([(), (evened(0.5),), (capped(1e6), evened(0.5), capped(2.0))]):
        int8 = tmp_path / f"{number}.onnx"
        settings = Int8Settings(percentile=100, smoothings=smoothings)
        quantise_static(matmul, int8, feeds=[{"x": wide(0)}], settings=settings)
        errors.append(np.abs(run(int8, x=wide(1))[0] - run(matmul, x=wide(1))[0]).mean())
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[0] / 2


def test_trained_ranges_are_used_as_they_are(matmul: Path, tmp_path: Path):
    int8 = tmp_path / "int8.onnx"
    span = Range(low=-2.0, high=3.0)
    quantise_static(matmul, int8, feeds=[], settings=EXACT, ranges={"w": span})
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(int8).graph.initializer}
    assert known["x/int8/scale"] == np.float32(span.scale)
    assert known["x/int8/zero"] == span.zero_point


def test_a_trained_range_for_an_unknown_weight_is_an_error(matmul: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no product with the weight 'elsewhere'"):
        span = Range(low=-1.0, high=1.0)
        quantise_static(matmul, tmp_path / "x", feeds=[], settings=EXACT, ranges={"elsewhere": span})


def test_no_calibration_rows_is_an_error(matmul: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="at least one batch"):
        quantise_static(matmul, tmp_path / "x", feeds=[], settings=EXACT)


@pytest.fixture
def layer_stage(exported: tuple[ExportedStage, ...], batches, tmp_path: Path, run) -> tuple[Path, Path]:
    """The second stage of the student (one layer and a head), fp32 and int8."""
    states = [run(exported[0].path, **batch)[0] for batch in batches]
    feeds = [{"states": s, "attention_mask": batch["attention_mask"]} for s, batch in zip(states, batches, strict=True)]
    int8 = tmp_path / "01.int8.onnx"
    names = quantise_static(exported[1].path, int8, feeds=feeds, settings=EXACT)
    assert set(names) == {f"layers.0.{part}.weight" for part in ("query", "key", "value", "output", "up", "down")}
    return exported[1].path, int8


def test_a_layer_has_static_standard_operators_and_fuses_whole(layer_stage, tmp_path: Path):
    _, int8 = layer_stage
    check_graph(int8)
    operators = _operators(int8)
    assert operators["DynamicQuantizeLinear"] == 0
    # attention's two products and the pooling stay float32, and the head's two Gemms
    assert operators["MatMul"] == 3
    fused = _fused(int8, tmp_path)
    assert fused["QGemm"] == 6
    # query, key and value share one; the activation between up and down is written as u8 by the kernel itself
    assert fused["QuantizeLinear"] == 3


def test_a_layer_is_near_fp32_and_answers_alike_in_any_company(layer_stage, run):
    fp32, int8 = layer_stage
    states, mask = _x((5, 7, 16), seed=3) * 2, np.ones((5, 7), np.int64)
    before, after = run(fp32, states=states, attention_mask=mask), run(int8, states=states, attention_mask=mask)
    assert np.abs(before[0] - after[0]).mean() < 0.05
    for item in range(5):
        alone = run(int8, states=states[item : item + 1], attention_mask=mask[:1])
        padded_states = np.concatenate([states[item : item + 1], np.zeros((1, 6, 16), np.float32)], axis=1)
        padded = run(int8, states=padded_states, attention_mask=np.array([[1] * 7 + [0] * 6]))
        assert np.abs(alone[1] - after[1][item]).max() < 1e-4
        assert np.abs(padded[1] - alone[1]).max() < 1e-4
