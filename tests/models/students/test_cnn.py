"""The CNN: what its filters see, that padding and company change nothing, and that the graph is the module."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.export.stages import export_stages
from models.students.cnn import CnnConfig, CnnStudent

CONFIG = CnnConfig(vocabulary=50, width=3, token_width=4, sizes=(2, 3, 5), filters=6, max_tokens=12)
TEXT = st.lists(st.integers(0, 49), min_size=0, max_size=9)


def made(config: CnnConfig = CONFIG) -> CnnStudent:
    torch.manual_seed(0)
    student = CnnStudent(config).eval()
    student.set_rows(torch.randn(config.vocabulary, config.token_width))
    with torch.no_grad():
        student.tokens.weight.normal_()
        for part in student.filters:
            part.bias.normal_(std=0.5)
    return student


STUDENT = made()


def batch(texts: list[list[int]], *, length: int = 0, filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded to the longest or to `length`, at least one token."""
    longest = max(1, length, *(len(text) for text in texts))
    ids = torch.tensor([text + [filler] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return ids, mask


def logits(student: CnnStudent, *tensors: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = student(*tensors).exits[0]
    return found


def by_hand(student: CnnStudent, text: list[int]) -> torch.Tensor:
    """Window after window of the text alone, with zeros at its end; where there is none a filter finds 0."""
    config = student.config
    with torch.no_grad():
        rows = student.table()[text]
        largest = []
        for size, part in zip(config.sizes, student.filters, strict=True):
            whole = torch.cat([rows, torch.zeros(size, config.row)])
            seen = [torch.relu(part(whole[at : at + size].flatten())) for at in range(len(text))]
            largest.append(torch.stack(seen).amax(0) if seen else torch.zeros(config.filters))
        found: torch.Tensor = student.logits(torch.cat(largest))
    return found


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 49))
def test_it_is_the_largest_of_every_filter_whatever_padding_and_company(
    texts: list[list[int]], length: int, filler: int
):
    found = logits(STUDENT, *batch(texts, length=length, filler=filler))
    assert torch.allclose(found, torch.stack([by_hand(STUDENT, text) for text in texts]), atol=1e-4)


@pytest.mark.parametrize(("sizes", "fixed"), [((2, 3, 5), True), ((2, 3, 5), False), ((1,), True), ((1, 4), False)])
def test_the_graph_computes_what_torch_computes_at_any_shape(sizes: tuple[int, ...], fixed: bool, tmp_path: Path):
    student = made(replace(CONFIG, sizes=sizes, fixed=fixed))
    (exported,) = export_stages(student.stages(), tmp_path)
    assert dict(exported.stage.inputs) == {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    assert list(exported.stage.outputs) == ["logits"]
    session = onnxruntime.InferenceSession(exported.path.read_bytes())
    random = np.random.default_rng(0)
    for items, tokens in itertools.product((1, 3, 8), (0, 1, 2, 9)):
        ids, mask = batch([random.integers(0, 50, size=max(0, tokens - at)).tolist() for at in range(items)])
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(found - logits(student, ids, mask).numpy()).max() < 1e-5


def test_fixed_rows_are_saved_and_never_trained():
    student = made().train()
    assert student.fixed is not None
    student(*batch([[7, 8, 9], [4]])).exits[0].square().sum().backward()
    assert student.fixed.grad is None
    assert "fixed" in student.state_dict()
    assert "fixed" not in dict(student.named_parameters())
    assert student.tokens.weight.grad is not None
    assert set(student.tokens.weight.grad.abs().sum(1).nonzero().flatten().tolist()) <= {4, 7, 8, 9}


def test_without_fixed_rows_a_token_has_one():
    student = made(replace(CONFIG, fixed=False))
    assert student.fixed is None
    assert student.table().shape == (50, 4)
    assert made().table().shape == (50, 8)


def test_both_rows_start_alike():
    student = CnnStudent(CONFIG)
    rows = torch.randn(50, 4)
    student.set_rows(rows)
    assert torch.equal(student.table(), torch.cat([rows, rows], dim=1))
