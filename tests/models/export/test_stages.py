"""Torch stages to ONNX: parity, open dims, standard operators, one file."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.errors import ParityFailed
from models.export.stages import OPSET, ExportedStage, check_graph, export_stages


def test_each_stage_is_one_standard_self_contained_file(exported: tuple[ExportedStage, ...]):
    assert [item.path.name for item in exported] == ["00.fp32.onnx", "01.fp32.onnx", "02.fp32.onnx"]
    folder = exported[0].path.parent
    assert sorted(path.name for path in folder.iterdir()) == [item.path.name for item in exported]
    for item in exported:
        model = onnx.load(item.path)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert item.parity < 1e-5


def test_the_manifest_entries_tell_the_graphs_tensors(exported: tuple[ExportedStage, ...]):
    first, middle, last = (item.stage for item in exported)
    assert first.inputs == {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    assert middle.inputs == {"states": "00.hidden", "attention_mask": "attention_mask"}
    assert middle.outputs["hidden"].dims == ("B", "T", 16)
    assert last.inputs["states"] == "01.hidden"
    assert {name: tensor.dims for name, tensor in last.outputs.items()} == {"logits": ("B", 3)}


def test_no_path_of_this_machine_is_left_in_a_graph(exported: tuple[ExportedStage, ...]):
    for item in exported:
        raw = item.path.read_bytes()
        assert b".py" not in raw
        assert str(Path.cwd()).encode() not in raw


def test_the_stages_together_compute_the_whole_student(exported: tuple[ExportedStage, ...], student):
    ids, mask = torch.randint(0, 90, (4, 11)), torch.ones(4, 11, dtype=torch.int64)
    mask[2:, 6:] = 0
    with torch.no_grad():
        wanted = student(ids, mask)
    states: dict[str, np.ndarray] = {}
    for place, item in enumerate(exported):
        session = onnxruntime.InferenceSession(item.path.read_bytes(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        feeds = {"attention_mask": mask.numpy(), **(states or {"input_ids": ids.numpy()})}
        found = dict(zip(names, session.run(names, feeds), strict=True))
        assert np.abs(found["logits"] - wanted.exits[place].numpy()).max() < 1e-4
        states = {"states": found.get("hidden", np.zeros(0))}


def test_the_same_module_gives_the_same_bytes(student, tmp_path: Path):
    once, again = (export_stages(student.stages()[:1], tmp_path / name)[0].path for name in ("a", "b"))
    assert once.read_bytes() == again.read_bytes()


def test_training_mode_comes_back(student, tmp_path: Path):
    (stage,) = student.stages()[:1]
    stage.train()
    export_stages([stage], tmp_path)
    assert stage.training


class _Stage(nn.Module):
    stage_id = "00"
    input_names = ("input_ids", "attention_mask")
    output_names = ("logits",)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.table(input_ids).sum(1) * attention_mask.sum(1, keepdim=True),)


class _Infinite(_Stage):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (super().forward(input_ids, attention_mask)[0] * float("nan"),)


def test_any_module_of_that_form_is_taken(tmp_path: Path):
    (done,) = export_stages([_Stage()], tmp_path)
    assert done.stage.outputs["logits"].dims == ("B", 4)


def test_a_graph_that_computes_nan_fails_parity(tmp_path: Path):
    with pytest.raises(ParityFailed, match=r"00\.fp32\.onnx: the graph differs from torch by nan"):
        export_stages([_Infinite()], tmp_path)


def test_a_tighter_tolerance_than_arithmetic_allows_fails(student, tmp_path: Path):
    with pytest.raises(ParityFailed, match="more than 1e-30"):
        export_stages(student.stages()[:1], tmp_path, parity_atol=1e-30)


def test_vendor_operators_are_refused(tmp_path: Path):
    node = onnx.helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    entry = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 2])
    graph = onnx.helper.make_graph([node], "g", [entry], [onnx.helper.make_tensor_value_info("y", 1, [2, 2])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "vendor.onnx"
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets).SerializeToString())
    with pytest.raises(ParityFailed, match=r"com\.microsoft\.FusedMatMul is not a standard"):
        check_graph(path)
