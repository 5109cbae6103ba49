"""int8 of students over token rows: an LSTM's weights are stored in 8 bits, filters are multiplied as integers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models.compress.int8 import Int8Settings
from models.compress.pipeline import quantise_stages
from models.compress.products import constants
from models.compress.stored import store_weights
from models.export.stages import ExportedStage, export_stages
from models.students.bilstm import BilstmConfig, BilstmStudent
from models.students.cnn import CnnConfig, CnnStudent

CONFIG = BilstmConfig(vocabulary=60, width=4, token_width=32, states=24, head_width=16, max_tokens=12)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedStage:
    torch.manual_seed(0)
    student = BilstmStudent(CONFIG).eval()
    torch.nn.init.normal_(student.tokens.weight)
    return export_stages(student.stages(), tmp_path_factory.mktemp("graphs"))[0]


def feeds(items: int, *, tokens: int = 9) -> dict[str, np.ndarray]:
    random = np.random.default_rng(items)
    lengths = random.integers(1, tokens + 1, items)
    return {
        "input_ids": random.integers(0, 60, (items, tokens)),
        "attention_mask": (np.arange(tokens)[None] < lengths[:, None]).astype(np.int64),
    }


def run(model: onnx.ModelProto, batch: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString()).run(None, batch)[0]
    return found


def test_the_answers_stay_near(exported: ExportedStage):
    model = onnx.load(exported.path)
    before, after = run(model, feeds(16)), run(store_weights(model), feeds(16))
    assert 0 < np.abs(before - after).max() < 0.02 * np.abs(before).max()


def test_the_weights_take_a_quarter(exported: ExportedStage):
    model = onnx.load(exported.path)
    smaller = store_weights(model)
    of_input, of_states = 2 * 4 * 24 * 33, 2 * 4 * 24 * 24
    saved = len(model.SerializeToString()) - len(smaller.SerializeToString())
    assert saved > 0.9 * (3 * (of_input + of_states) - 2 * 2 * 4 * 24 * 4)


def test_padding_still_changes_nothing(exported: ExportedStage):
    smaller, batch = store_weights(onnx.load(exported.path)), feeds(8)
    together = run(smaller, batch)
    for at, length in enumerate(batch["attention_mask"].sum(axis=1)):
        alone = run(smaller, {name: values[at : at + 1, :length] for name, values in batch.items()})
        assert np.abs(together[at] - alone[0]).max() < 1e-5


def test_the_int8_pass_rounds_them_and_its_receipt_says_so(exported: ExportedStage, tmp_path: Path):
    stage, int8 = exported.stage, tmp_path / "int8.onnx"
    receipt = quantise_stages(
        [stage], fp32={stage.id: exported.path}, int8={stage.id: int8}, batches=[feeds(32)], settings=Int8Settings()
    )
    assert receipt.bytes_after == int8.stat().st_size < receipt.bytes_before
    assert receipt.mean_cosine > 0.999
    assert any(name.endswith("/stored/levels") for name in constants(onnx.load(int8).graph))


def test_the_filters_of_a_cnn_are_multiplied_as_integers(tmp_path: Path):
    torch.manual_seed(0)
    student = CnnStudent(CnnConfig(vocabulary=60, width=4, token_width=16, sizes=(2, 3), filters=8, max_tokens=12))
    student.set_rows(torch.randn(60, 16))
    (exported,) = export_stages(student.eval().stages(), tmp_path)
    stage, int8 = exported.stage, tmp_path / "int8.onnx"
    receipt = quantise_stages(
        [stage], fp32={stage.id: exported.path}, int8={stage.id: int8}, batches=[feeds(32)], settings=Int8Settings()
    )
    assert [node.op_type for node in onnx.load(int8).graph.node].count("QuantizeLinear") == 1
    assert receipt.mean_cosine > 0.99
