"""Ranges of activations: what they must hold, and how they are measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from models.compress.ranges import Range, observe

VALUES = st.floats(0, 1e4, allow_nan=False)


@given(low=VALUES, high=VALUES)
def test_zero_is_exact_and_every_value_in_range_is_within_half_a_step(low: float, high: float):
    span = Range(low=-low, high=high)
    assert 0 <= span.zero_point <= 255
    values = np.linspace(-low, high, 50)
    levels = np.clip(np.rint(values / span.scale) + span.zero_point, 0, 255)
    back = (levels - span.zero_point) * span.scale
    assert np.abs(back - values).max() <= span.scale * 1.001


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-1.0, -0.5), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_that_does_not_hold_zero_or_is_not_finite_is_refused(low: float, high: float):
    with pytest.raises(ValueError, match="must be finite and hold 0"):
        Range(low=low, high=high)


@pytest.fixture
def doubled(build):
    """y = 2x with an inner tensor `inner` = -x."""
    nodes = [helper.make_node("Neg", ["x"], ["inner"]), helper.make_node("Mul", ["inner", "c"], ["y"])]
    return build(
        nodes,
        {"c": np.array(-2, np.float32)},
        inputs={"x": ["B", "T", 2], "attention_mask": ["B", "T"]},
        outputs={"y": ["B", "T", 2]},
    )


def _feeds(values: np.ndarray, mask: list[list[int]]) -> dict[str, np.ndarray]:
    return {"x": values.astype(np.float32), "attention_mask": np.array(mask)}


def test_inner_tensors_and_inputs_are_watched_and_padding_is_not(doubled):
    values = np.zeros((1, 3, 2))
    values[0, 0], values[0, 1], values[0, 2] = (1, -2), (3, 4), (1000, -1000)
    seen = observe(doubled, tensors=["x", "inner"], feeds=[_feeds(values, [[1, 1, 0]])])
    assert (seen["x"].low, seen["x"].high) == (-2, 4)
    assert (seen["inner"].low, seen["inner"].high) == (-4, 2)
    assert seen["x"].channels.tolist() == [3, 4]
    assert not seen["x"].per_item


def test_a_percentile_leaves_out_the_tails_and_100_keeps_the_extremes(doubled):
    values = np.ones((1, 5000, 2))
    values[0, 17] = (50, -50)
    (seen,) = observe(doubled, tensors=["x"], feeds=[_feeds(values, [[1] * 5000])]).values()
    assert seen.clipped(100) == Range(low=-50, high=50)
    assert seen.clipped(99.9) == Range(low=0, high=1)


def test_dividing_channels_divides_what_was_seen(doubled):
    values = np.stack([np.linspace(-8, 8, 9), np.linspace(-1, 1, 9)], axis=1)[None]
    (seen,) = observe(doubled, tensors=["x"], feeds=[_feeds(values, [[1] * 9])]).values()
    even = seen.scaled(np.array([8, 1], np.float32))
    assert (even.low, even.high, even.channels.tolist()) == (-1, 1, [1, 1])
    assert seen.scaled(None) is seen


def test_a_tensor_with_one_row_an_item_is_told_apart(build):
    model = build(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        {"axes": np.array([1])},
        inputs={"x": ["B", "T", 2]},
        outputs={"y": ["B", 2]},
    )
    seen = observe(model, tensors=["y"], feeds=[_feeds(np.ones((2, 3, 2)), [[1, 1, 1], [1, 1, 0]])])
    assert seen["y"].per_item


def test_no_batches_is_an_error(doubled):
    with pytest.raises(ValueError, match="at least one batch"):
        observe(doubled, tensors=["x"], feeds=[])
