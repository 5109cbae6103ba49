"""Lists of pairs: which pairs a list holds, and that batching, chunking and padding change no score."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from models.teachers import pair_lists as module
from models.teachers.pair_lists import PairLists, list_scores, pair_lists, split_list_scores, split_lists
from models.teachers.tokens import Padded

LISTS = [
    [("card", "lost card"), ("card", "where is my money")],
    [("money", "a bad film again"), ("money", "money"), ("money", "the late transfer is lost")],
    [("film", "good")],
]
GRADES = [[1, 0], [0, 2, 0], [1]]


@pytest.fixture
def lists(tokenizer_json: bytes) -> PairLists:
    return pair_lists(tokenizer_json, LISTS, GRADES, max_tokens=12)


def summed(batch: Padded) -> Tensor:
    """A scorer that any mistake with rows, padding or token types shows in."""
    weights = torch.arange(1, batch.input_ids.shape[1] + 1)
    return (batch.input_ids * weights * batch.attention_mask + 1000 * batch.token_type_ids).sum(1).float()


def alone(tokenizer_json: bytes, pairs: Sequence[tuple[str, str]]) -> list[float]:
    found = [pair_lists(tokenizer_json, [[pair]], [[0]], max_tokens=12).tokens.padded([0]) for pair in pairs]
    return [float(summed(batch)) for batch in found]


@pytest.mark.parametrize("rows", [[0], [2, 1], [0, 1, 2]])
@pytest.mark.parametrize("chunk", [1, 20, 4096])
def test_scores_are_those_of_each_pair_alone(
    lists: PairLists, tokenizer_json: bytes, rows: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    table = list_scores(summed, lists, np.array(rows))
    for found, row in zip(table.tolist(), rows, strict=True):
        size = len(LISTS[row])
        assert found[:size] == alone(tokenizer_json, LISTS[row])
        assert found[size:] == [0.0] * (table.shape[1] - size)


def test_chunks_hold_no_more_tokens_than_allowed(lists: PairLists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_TOKENS", 24)
    shapes = []

    def noted(batch: Padded) -> Tensor:
        shapes.append(batch.input_ids.numel())
        return summed(batch)

    list_scores(noted, lists, np.array([0, 1, 2]))
    assert len(shapes) > 1
    assert max(shapes) <= 24


def test_tables_and_masks(lists: PairLists) -> None:
    rows = np.array([1, 2])
    assert lists.mask(rows).tolist() == [[True, True, True], [True, False, False]]
    assert lists.table(rows, lists.grades).tolist() == [[0, 2, 0], [1, 0, 0]]
    assert len(lists) == 3
    assert lists.lengths.tolist() == [max(lists.tokens.lengths[a:b]) for a, b in ((0, 2), (2, 5), (5, 6))]


def test_gradients_reach_every_pair(lists: PairLists) -> None:
    scale = torch.ones(1, requires_grad=True)
    list_scores(lambda batch: summed(batch) * scale, lists, np.array([0, 1])).sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == float(list_scores(summed, lists, np.array([0, 1])).sum())


def read(batch: Padded) -> Tensor:
    """Of each token its id, and 1000 more in a second text."""
    ids = (batch.input_ids + 1000 * batch.token_type_ids) * batch.attention_mask
    return ids.float()[:, :, None]


def join(asked: Tensor, mask: Tensor, passages: Padded) -> Tensor:
    """A number that any mistake with queries, rows or padding shows in."""
    weights = torch.arange(1, passages.input_ids.shape[1] + 1)
    return 1e-3 * (asked[:, :, 0] * mask).sum(1) ** 2 + (read(passages)[:, :, 0] * weights).sum(1)


@pytest.mark.parametrize("rows", [[0], [2, 1], [0, 1, 2]])
@pytest.mark.parametrize("chunk", [1, 20, 4096])
def test_texts_apart_are_joined_with_their_own_query(
    tokenizer_json: bytes, rows: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    lists = split_lists(tokenizer_json, LISTS, GRADES, max_tokens=12)
    assert lists.passages.lengths.tolist() == [6, 7, 3]
    seen = []

    def noted(batch: Padded) -> Tensor:
        seen.append(len(batch.input_ids))
        return read(batch)

    table = split_list_scores(noted, join, lists, np.array(rows))
    assert seen == [len(rows)]  # each query once, however many passages it has
    for found, row in zip(table.tolist(), rows, strict=True):
        single = [split_lists(tokenizer_json, [[pair]], [[0]], max_tokens=12) for pair in LISTS[row]]
        alone = [split_list_scores(read, join, each, np.array([0])).item() for each in single]
        assert found[: len(alone)] == alone
        assert found[len(alone) :] == [0.0] * (table.shape[1] - len(alone))
