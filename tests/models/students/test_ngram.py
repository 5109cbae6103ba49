"""The bag of n-grams: what is counted, where its rows are, and that the graph is the module."""

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
from models.students.ngram import NgramConfig, NgramStudent, multipliers, next_prime, ngrams_of

CONFIG = NgramConfig(
    vocabulary=50, width=3, orders=3, buckets=next_prime(200), rows=6, hidden=8, max_tokens=12, markers=(2, 3)
)
TEXT = st.lists(st.integers(4, 49), min_size=0, max_size=9)


def bag(config: NgramConfig = CONFIG) -> NgramStudent:
    torch.manual_seed(0)
    student = NgramStudent(config).eval()
    with torch.no_grad():
        student.table.normal_()
        student.table[student.is_marker] = 0.0
    return student


STUDENT = bag()


def batch(texts: list[list[int]], *, length: int = 0, filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids between their markers, padded to the longest or to `length`."""
    whole = [[2, *text, 3] for text in texts]
    longest = max(length, *(len(text) for text in whole))
    ids = torch.tensor([text + [filler] * (longest - len(text)) for text in whole])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in whole])
    return ids, mask


def logits(student: NgramStudent, *tensors: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return student(*tensors).exits[0]


def by_hand(student: NgramStudent, text: list[int]) -> torch.Tensor:
    """The mean of rows, order by order, in plain Python."""
    config, whole = student.config, [2, *text, 3]
    total = torch.zeros(config.rows)
    if text:
        total += student.table[text].mean(0)
    for order in range(2, config.orders + 1):
        grams = [whole[at : at + order] for at in range(len(whole) - order + 1)]
        keys = [sum(i * m for i, m in zip(gram, multipliers(config), strict=False)) + order * 7_919 for gram in grams]
        if keys:
            total += student.table[[config.vocabulary + key % config.buckets for key in keys]].mean(0)
    return total


@given(TEXT)
def test_it_is_the_mean_of_the_rows_of_every_order(text: list[int]):
    with torch.no_grad():
        wanted = STUDENT.head(by_hand(STUDENT, text)[None])
    assert torch.allclose(logits(STUDENT, *batch([text])), wanted, atol=1e-5)


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(2, 20), st.integers(0, 49))
def test_neither_padding_nor_company_matters(texts: list[list[int]], length: int, filler: int):
    (stage,) = STUDENT.stages()
    with torch.no_grad():
        together = stage(*batch(texts, length=length, filler=filler))[0]
    alone = torch.cat([logits(STUDENT, *batch([text])) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)


@given(st.integers(2, 130_000), st.integers(1, 4), st.integers(16, 1 << 22))
def test_no_number_of_the_hash_reaches_two_to_the_31(vocabulary: int, orders: int, buckets: int):
    config = replace(CONFIG, vocabulary=vocabulary, orders=orders, buckets=next_prime(buckets))
    largest = sum(multipliers(config)) * (vocabulary - 1) + orders * 7_919
    assert largest < 2**31
    assert config.vocabulary + config.buckets < 2**31


def test_pairs_of_tokens_spread_over_the_buckets():
    config = replace(CONFIG, vocabulary=30_000, buckets=next_prime(65_536), orders=2)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 30_000, (1, 40_001), generator=draw)
    places = ngrams_of(ids, torch.ones_like(ids), config).places[0, 40_001:-1] - config.vocabulary
    expected = config.buckets * (1 - (1 - 1 / config.buckets) ** 40_000)
    assert abs(len(places.unique()) - expected) < 0.01 * expected


def test_orders_do_not_share_a_bucket_by_rule():
    ids, mask = batch([[7, 0, 9]])
    places = ngrams_of(ids, mask, CONFIG).places[0].reshape(3, -1)
    assert places[1, 1] != places[2, 1]


@pytest.mark.parametrize("orders", [1, 2, 4])
def test_the_graph_computes_what_torch_computes_at_any_shape(orders: int, tmp_path: Path):
    student = bag(replace(CONFIG, orders=orders))
    (exported,) = export_stages(student.stages(), tmp_path)
    assert dict(exported.stage.inputs) == {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    assert list(exported.stage.outputs) == ["logits"]
    session = onnxruntime.InferenceSession(exported.path.read_bytes())
    random = np.random.default_rng(0)
    for items, tokens in itertools.product((1, 3, 8), (0, 1, 2, 9)):
        ids, mask = batch([random.integers(4, 50, size=max(0, tokens - at)).tolist() for at in range(items)])
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(found - logits(student, ids, mask).numpy()).max() < 1e-5


def test_only_rows_of_the_batch_get_gradients_and_markers_none():
    student = bag().train()
    student(*batch([[7, 8], []])).exits[0].sum().backward()
    gradient = student.table.grad
    assert gradient is not None
    assert gradient.is_sparse
    touched = set(gradient.coalesce().indices()[0].tolist())
    assert touched & set(range(50)) == {7, 8}
    assert len(touched) <= 2 + 4 + 2


def test_dropped_features_change_training_alone_and_keep_the_mean():
    config = replace(CONFIG, feature_dropout=0.5)
    student = bag(config)
    ids, mask = batch([[7, 8, 9, 10]])
    assert torch.equal(logits(student, ids, mask), logits(student, ids, mask))
    student.train()
    with torch.no_grad():
        student.head.inner.weight.copy_(torch.eye(8, 6))
        student.head.inner.bias.fill_(100.0)
        student.head.logits.weight.fill_(1.0)
    torch.manual_seed(1)
    drawn = torch.stack([logits(student, ids, mask) for _ in range(3000)]).mean(0)
    assert torch.allclose(drawn, logits(student.eval(), ids, mask), atol=0.3)


def test_new_rows_of_long_ngrams_add_nothing():
    torch.manual_seed(0)
    student = NgramStudent(CONFIG).eval()
    with torch.no_grad():
        wanted = student.head(student.table[[7, 8]].mean(0)[None])
    assert torch.allclose(logits(student, *batch([[7, 8]])), wanted, atol=1e-6)
