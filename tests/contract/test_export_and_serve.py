"""The contract between the halves: what was exported is what the online half answers with, alone or in company."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from service.bundle.load import Bundle, file_entry, load_bundle
from service.errors import GoldenMismatch, GraphMismatch
from service.runtime.encode import pad
from service.runtime.heads import softmax
from service.runtime.student import Student
from service.store.store import Store

TOLERANCE = {"fp32": 1e-4, "int8": 1e-3}
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "int8"])


@pytest.fixture(scope="module")
def served(published: Store) -> dict[str, Student]:
    bundle = published.open("tiny", published.resolve("tiny").version)
    return {precision: Student(bundle, precision=precision) for precision in ("fp32", "int8")}


@PRECISIONS
def test_what_is_published_gives_its_golden_outputs(served: dict[str, Student], precision: str):
    served[precision].check_golden()


def test_fp32_computes_what_torch_computes_but_for_the_rounded_table(served, student, texts):
    encoded = served["fp32"].encoder.encode(texts)
    found = served["fp32"].all_exits(encoded)
    feeds = pad(encoded, pad_id=0)
    with torch.no_grad():
        wanted = student(torch.as_tensor(feeds["input_ids"]), torch.as_tensor(feeds["attention_mask"])).exits
    for got, want in zip(found, wanted, strict=True):
        assert np.abs(got - want.numpy()).max() < 0.05 * want.abs().max()


def test_int8_is_near_fp32_at_every_exit(served, texts):
    encoded = served["fp32"].encoder.encode(texts)
    for before, after in zip(served["fp32"].all_exits(encoded), served["int8"].all_exits(encoded), strict=True):
        assert np.abs(before - after).mean() < 0.1 * np.abs(before).mean()
        assert (before.argmax(1) == after.argmax(1)).mean() > 0.9


def _scores(student: Student, batch, *, length: int | None = None) -> np.ndarray:
    """float [B, exits, C]."""
    raws = student.all_exits(batch, length=length)
    return np.stack([softmax(raw, temperature=1.0) for raw in raws], axis=1)


def _assert_alike(company: np.ndarray, alone: np.ndarray, precision: str) -> None:
    assert np.abs(company - alone).max() <= TOLERANCE[precision]
    ranked = np.sort(alone, axis=-1)
    tied = ranked[..., -1] - ranked[..., -2] <= TOLERANCE[precision]
    assert ((company.argmax(-1) == alone.argmax(-1)) | tied).all()


@pytest.fixture(scope="module")
def alone(served, texts) -> dict[str, np.ndarray]:
    return {
        precision: np.concatenate([_scores(student, [item]) for item in student.encoder.encode(texts)])
        for precision, student in served.items()
    }


@PRECISIONS
def test_an_answer_is_the_same_alone_and_in_a_batch_of_64(served, texts, alone, precision):
    student = served[precision]
    _assert_alike(_scores(student, student.encoder.encode(texts)), alone[precision], precision)


@PRECISIONS
@pytest.mark.parametrize("length", [12, 17, 23, 24])
def test_an_answer_is_the_same_padded_to_any_length(served, texts, alone, precision, length):
    student = served[precision]
    encoded = student.encoder.encode(texts)
    fits = [item.kept <= length for item in encoded]
    padded = [_scores(student, [item], length=length) for item, fit in zip(encoded, fits, strict=True) if fit]
    _assert_alike(np.concatenate(padded), alone[precision][fits], precision)


@PRECISIONS
def test_an_answer_is_the_same_among_strangers_of_any_kind(served, texts, alone, precision):
    student = served[precision]
    encoded = student.encoder.encode(texts)
    loud = student.encoder.encode(["?!,.-'" * 4, "", "zzzz qqqq 0000 " * 9])
    for place in (0, 17, 63):
        company = _scores(student, [*loud, encoded[place], *loud])[3:4]
        _assert_alike(company, alone[precision][place : place + 1], precision)


@pytest.fixture
def copy(published: Store, tmp_path: Path) -> Path:
    """A copy of the published version that a test may break."""
    return shutil.copytree(published.open("tiny", 1).path, tmp_path / "copy")


def _reload(copy: Path, changed: str) -> Bundle:
    """The bundle with the digest of `changed` brought up to date, as one who swaps a file on purpose would."""
    document = json.loads((copy / "manifest.json").read_text())
    document["files"][changed] = file_entry(copy / changed).model_dump()
    (copy / "manifest.json").write_text(json.dumps(document))
    return load_bundle(copy)


@PRECISIONS
def test_a_graph_with_other_weights_is_refused(copy: Path, precision: str):
    file = f"stages/01.{precision}.onnx"
    model = onnx.load(copy / file)
    # the widest matrix, s8 or float32: up
    tensor = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
    tensor.raw_data = np.frombuffer(tensor.raw_data, np.uint8).reshape(-1, 4)[::-1].tobytes()
    onnx.save(model, copy / file)
    with pytest.raises(GoldenMismatch, match=rf"tiny {precision} on onnxruntime: golden sample \d, exit 'layer-2'"):
        Student(_reload(copy, file), precision=precision).check_golden()


def test_stages_that_changed_places_are_refused(copy: Path):
    shutil.copyfile(copy / "stages/02.int8.onnx", copy / "stages/01.int8.onnx")
    with pytest.raises(GraphMismatch, match=r"01\.int8\.onnx: the graph has no output 'hidden'"):
        Student(_reload(copy, "stages/01.int8.onnx"), precision="int8")


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x00" * 64])
def test_what_is_no_graph_is_refused(copy: Path, content: bytes):
    (copy / "stages/00.int8.onnx").write_bytes(content)
    with pytest.raises(GraphMismatch, match=r"00\.int8\.onnx"):
        Student(_reload(copy, "stages/00.int8.onnx"), precision="int8")


def test_a_cut_graph_is_refused(copy: Path):
    path = copy / "stages/00.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx"):
        Student(_reload(copy, "stages/00.fp32.onnx"), precision="fp32")


def _change(copy: Path, file: str, change) -> Bundle:
    model = onnx.load(copy / file)
    change(model)
    (copy / file).write_bytes(model.SerializeToString())
    return _reload(copy, file)


def test_a_graph_whose_input_has_another_name_is_refused(copy: Path):
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]
        model.graph.input[0].name = "ids"

    with pytest.raises(GraphMismatch, match=r"has no input '(input_ids|ids)'"):
        Student(_change(copy, "stages/00.fp32.onnx", rename), precision="fp32")


def test_a_graph_with_another_number_of_labels_is_refused(copy: Path):
    def cut(model: onnx.ModelProto) -> None:
        output = next(entry for entry in model.graph.output if entry.name == "logits")
        output.name = "all_logits"
        for node in model.graph.node:
            node.output[:] = ["all_logits" if name == "logits" else name for name in node.output]
        bounds = {"from": [0], "to": [5], "axis": [1]}
        model.graph.initializer.extend(
            helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in bounds.items()
        )
        model.graph.node.append(helper.make_node("Slice", ["all_logits", *bounds], ["logits"]))
        output.CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 5]))

    with pytest.raises(GraphMismatch, match="output 'logits' has size 5 at dim 1, the manifest says 6"):
        Student(_change(copy, "stages/02.fp32.onnx", cut), precision="fp32")


def test_weights_outside_the_file_are_refused(copy: Path):
    def move_out(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/hostname")
        tensor.ClearField("raw_data")

    with pytest.raises(GraphMismatch, match="data lies outside the file"):
        Student(_change(copy, "stages/00.fp32.onnx", move_out), precision="fp32")
