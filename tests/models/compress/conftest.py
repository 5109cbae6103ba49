"""A tiny exported student, and helpers that build one-node graphs, for the compression tests."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.export.stages import ExportedStage, export_stages
from models.students.encoder import EncoderConfig, EncoderStudent

VOCABULARY = 60
CONFIG = EncoderConfig(
    vocabulary=VOCABULARY,
    width=4,
    layers=2,
    hidden=16,
    heads=2,
    feed_forward=32,
    exits=(0, 1, 2),
    max_tokens=16,
    local_features=8,
)


def make_student() -> EncoderStudent:
    torch.manual_seed(0)
    student = EncoderStudent(CONFIG).eval()
    for head in student.exits:
        torch.nn.init.normal_(head.logits.weight, std=0.5)
    return student


def make_batches(n: int, *, seed: int, items: int = 6) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    batches = []
    for _ in range(n):
        tokens = int(draw.integers(3, 14))
        lengths = draw.integers(1, tokens + 1, items)
        lengths[0] = tokens
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
        batches.append({"input_ids": draw.integers(1, VOCABULARY, (items, tokens)) * mask, "attention_mask": mask})
    return batches


@pytest.fixture
def student() -> EncoderStudent:
    """A random three-exit student; this test may change it."""
    return make_student()


@pytest.fixture(scope="session")
def batches() -> list[dict[str, np.ndarray]]:
    """Eight padded batches of six items."""
    return make_batches(8, seed=1)


@pytest.fixture(scope="session")
def unseen() -> list[dict[str, np.ndarray]]:
    """Other batches of the same kind."""
    return make_batches(6, seed=2)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedStage, ...]:
    """The fp32 graphs of the random student; read only."""
    return export_stages(make_student().stages(), tmp_path_factory.mktemp("exported"))


Build = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def build() -> Build:
    """`build(nodes, constants, inputs={name: dims}, outputs={name: dims}) -> ModelProto`, all float32."""

    def made(
        nodes: Sequence[onnx.NodeProto],
        constants: Mapping[str, np.ndarray],
        *,
        inputs: Mapping[str, list[Any]],
        outputs: Mapping[str, list[Any]],
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            list(nodes),
            "test",
            [_entry(name, dims) for name, dims in inputs.items()],
            [_entry(name, dims) for name, dims in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    return made


def _entry(name: str, dims: list[Any]) -> onnx.ValueInfoProto:
    integer = name in ("input_ids", "attention_mask")
    return helper.make_tensor_value_info(name, TensorProto.INT64 if integer else TensorProto.FLOAT, dims)


Run = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="session")
def run() -> Run:
    """`run(path_or_model, **feeds) -> outputs`."""

    def ran(graph: Path | onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
        raw = graph.read_bytes() if isinstance(graph, Path) else graph.SerializeToString()
        session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))

    return ran
