"""The BiLSTM: padding and company change nothing, the graph is the module, and it is an LSTM as torch knows it."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.export.stages import export_stages
from models.students.bilstm import BilstmConfig, BilstmStudent

CONFIG = BilstmConfig(vocabulary=50, width=3, token_width=6, states=5, head_width=8, max_tokens=12, pooling="both")
TEXT = st.lists(st.integers(0, 49), min_size=1, max_size=9)


def made(config: BilstmConfig = CONFIG) -> BilstmStudent:
    torch.manual_seed(0)
    student = BilstmStudent(config).eval()
    with torch.no_grad():
        student.tokens.weight.normal_()
        for parameter in student.lstm.parameters():
            parameter.normal_()
    return student


STUDENT = made()


def batch(texts: list[list[int]], *, length: int = 0, filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded to the longest or to `length`, at least one token."""
    longest = max(1, length, *(len(text) for text in texts))
    ids = torch.tensor([text + [filler] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return ids, mask


def logits(student: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = student(*tensors).exits[0]
    return found


def by_hand(student: BilstmStudent, text: list[int]) -> torch.Tensor:
    """Torch's own bidirectional LSTM on the text alone."""
    with torch.no_grad():
        states = student.lstm(student.tokens(torch.tensor(text)))[0]
        pooled = torch.cat([states.amax(0), states.mean(0)])
        inner = torch.relu(student.inner(pooled))
        found: torch.Tensor = student.logits(inner)
    return found


@pytest.mark.parametrize("pooling", ["max", "mean", "both"])
def test_every_pooling_sees_what_it_says(pooling: str):
    config = replace(CONFIG, pooling=pooling)
    student = made(config)
    ids, mask = batch([[7, 8, 9], [4]])
    with torch.no_grad():
        states = student.lstm(student.tokens(ids[:1].T))[0][:, 0]
        kinds = {"max": [states.amax(0)], "mean": [states.mean(0)], "both": [states.amax(0), states.mean(0)]}
        wanted = student.logits(torch.relu(student.inner(torch.cat(kinds[pooling]))))
    assert config.pooled == {"max": 10, "mean": 10, "both": 20}[pooling]
    assert torch.allclose(logits(student, ids, mask)[0], wanted, atol=1e-5)


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 49))
def test_neither_padding_nor_company_matters(texts: list[list[int]], length: int, filler: int):
    found = logits(STUDENT, *batch(texts, length=length, filler=filler))
    alone = torch.stack([by_hand(STUDENT, text) for text in texts])
    assert torch.allclose(found, alone, atol=1e-5)


def test_a_text_without_tokens_has_an_answer_of_its_own():
    alone = logits(STUDENT, *batch([[]]))
    assert torch.isfinite(alone).all()
    assert torch.allclose(logits(STUDENT, *batch([[5, 6, 7], []], filler=9))[1:], alone, atol=1e-6)


def test_the_backward_direction_begins_at_the_last_token():
    found = logits(STUDENT, *batch([[7, 8]], length=12, filler=30))
    other = logits(STUDENT, *batch([[7, 8]], length=12, filler=31))
    longer = logits(STUDENT, *batch([[7, 8, 30]]))
    assert torch.equal(found, other)
    assert not torch.allclose(found, longer, atol=1e-3)


@pytest.mark.parametrize("pooling", ["max", "mean", "both"])
def test_the_graph_computes_what_torch_computes_at_any_shape(pooling: str, tmp_path: Path):
    student = made(replace(CONFIG, pooling=pooling))
    (exported,) = export_stages(student.stages(), tmp_path)
    assert dict(exported.stage.inputs) == {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    assert list(exported.stage.outputs) == ["logits"]
    session = onnxruntime.InferenceSession(exported.path.read_bytes())
    random = np.random.default_rng(0)
    for items, tokens in itertools.product((1, 3, 8), (0, 1, 2, 9)):
        ids, mask = batch([random.integers(0, 50, size=max(0, tokens - at)).tolist() for at in range(items)])
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(found - logits(student, ids, mask).numpy()).max() < 1e-5


def test_the_graph_has_one_operator_for_both_directions(tmp_path: Path):
    (exported,) = export_stages(made().stages(), tmp_path)
    nodes = onnx.load(exported.path).graph.node
    (node,) = [node for node in nodes if node.op_type == "LSTM"]
    assert len(node.input) == 4
    assert {attribute.name: attribute.s for attribute in node.attribute}["direction"] == b"bidirectional"


def test_training_moves_every_parameter_and_leaves_the_closing_weight():
    student = made().train()
    logits_of = student(*batch([[7, 8, 9], [4]])).exits[0]
    logits_of.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert "closing" not in student.state_dict()
