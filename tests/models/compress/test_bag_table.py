"""The rows of a bag of n-grams as int8."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from models.compress.bag_table import quantise_bag_table
from models.export.stages import check_graph, export_stages
from models.students.ngram import NgramConfig, NgramStudent

CONFIG = NgramConfig(vocabulary=30, width=3, orders=3, buckets=997, rows=16, hidden=8, max_tokens=12)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    student = NgramStudent(CONFIG)
    torch.nn.init.normal_(student.table)
    (exported,) = export_stages(student.stages(), tmp_path)
    return exported.path


def test_the_graph_shrinks_and_its_logits_hardly_move(graph: Path, tmp_path: Path, run):
    small = quantise_bag_table(onnx.load(graph))
    path = tmp_path / "small.onnx"
    onnx.save(small, path)
    check_graph(path)
    assert path.stat().st_size < 0.6 * graph.stat().st_size
    assert {tensor.data_type for tensor in small.graph.initializer if tensor.name.endswith("levels")} == {
        onnx.TensorProto.INT8
    }
    feeds = {"input_ids": np.arange(12).reshape(2, 6), "attention_mask": np.ones((2, 6), np.int64)}
    before, after = run(onnx.load(graph), **feeds), run(small, **feeds)
    assert 0 < np.abs(before[0] - after[0]).max() < 0.02 * np.abs(before[0]).max() + 0.02


def test_a_token_table_is_left_alone(exported):
    model = onnx.load(exported[0].path)
    assert [node.op_type for node in quantise_bag_table(model).graph.node] == [n.op_type for n in model.graph.node]


def test_rows_that_something_else_reads_are_left_alone(build):
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("MatMul", ["weights", "rows"], ["y"]),
        helper.make_node("Identity", ["rows"], ["z"]),
    ]
    model = build(
        nodes,
        {"table": np.eye(4, dtype=np.float32)},
        inputs={"places": ["B", "N"], "weights": ["B", 1, "N"]},
        outputs={"y": ["B", 1, 4], "z": ["B", "N", 4]},
    )
    assert [node.op_type for node in quantise_bag_table(model).graph.node] == ["Gather", "MatMul", "Identity"]
