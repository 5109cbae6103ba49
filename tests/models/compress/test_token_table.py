"""The token table as int8 rows."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from models.compress.token_table import quantise_rows, quantise_token_table
from models.export.stages import ExportedStage, check_graph


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
def test_rows_are_within_half_a_step(seed: int, vocabulary: int, hidden: int):
    table = np.random.default_rng(seed).normal(size=(vocabulary, hidden)).astype(np.float32)
    made = quantise_rows(table)
    assert np.abs(made.levels * made.scales - table).max() <= made.scales.max() * 0.501


def test_the_graph_shrinks_and_its_states_hardly_move(exported: tuple[ExportedStage, ...], tmp_path: Path, run):
    model = onnx.load(exported[0].path)
    small = quantise_token_table(model)
    path = tmp_path / "small.onnx"
    onnx.save(small, path)
    check_graph(path)
    kinds = {tensor.name: tensor.data_type for tensor in small.graph.initializer}
    assert "embeddings.tokens.weight" not in kinds
    feeds = {"input_ids": np.arange(12).reshape(2, 6), "attention_mask": np.ones((2, 6), np.int64)}
    before, after = run(model, **feeds), run(small, **feeds)
    assert np.abs(before[0] - after[0]).max() < 0.05


def test_a_graph_without_a_table_is_as_it_was(exported: tuple[ExportedStage, ...]):
    model = onnx.load(exported[1].path)
    assert [node.op_type for node in quantise_token_table(model).graph.node] == [n.op_type for n in model.graph.node]


@pytest.mark.parametrize(("indices", "axis", "dims"), [("places", 0, [2, 4]), ("input_ids", 1, [4, "B", "T"])])
def test_other_lookups_are_left_alone(build, indices: str, axis: int, dims: list[int | str]):
    nodes = [helper.make_node("Gather", ["table", indices], ["y"], axis=axis)]
    constants = {"table": np.eye(4, dtype=np.float32), "places": np.array([1, 2])}
    model = build(nodes, constants, inputs={"input_ids": ["B", "T"]}, outputs={"y": dims})
    assert [node.op_type for node in quantise_token_table(model).graph.node] == ["Gather"]
