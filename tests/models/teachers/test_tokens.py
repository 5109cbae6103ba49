"""Token ids: truncation, padding, and the order of batches."""

import numpy as np

from models.teachers.tokens import batches_in_order_of_length, shuffled_batches, tokenise


def test_the_tokenizers_own_truncation_and_padding_are_off(tokenizer_json):
    tokens = tokenise(tokenizer_json, ["where is my card", "card"], max_tokens=64)
    assert tokens.lengths.tolist() == [6, 3]


def test_a_long_text_is_cut_at_its_end_and_keeps_the_special_tokens(tokenizer_json):
    whole = tokenise(tokenizer_json, ["where is my card again"], max_tokens=64)
    cut = tokenise(tokenizer_json, ["where is my card again"], max_tokens=4)
    assert cut.ids.tolist() == [*whole.ids[:3].tolist(), 3]


def test_a_pair_has_two_token_types(tokenizer_json):
    tokens = tokenise(tokenizer_json, [("card", "lost"), "card"], max_tokens=64)
    assert tokens.types.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_no_texts_and_an_empty_text(tokenizer_json):
    assert len(tokenise(tokenizer_json, [], max_tokens=8)) == 0
    assert tokenise(tokenizer_json, [""], max_tokens=8).ids.tolist() == [2, 3]


def test_padded_puts_each_text_in_its_row(tokenizer_json):
    tokens = tokenise(tokenizer_json, ["card", "where is my card", ""], max_tokens=64)
    batch = tokens.padded([2, 1])
    assert batch.input_ids.shape == (2, 6)
    assert batch.input_ids[0].tolist() == [2, 3, 0, 0, 0, 0]
    assert batch.input_ids[1].tolist() == tokens.ids[3:9].tolist()
    assert batch.attention_mask.sum(1).tolist() == [2, 6]


def test_batches_in_order_of_length_hold_every_row_once():
    lengths = np.array([5, 1, 4, 2, 3])
    batches = batches_in_order_of_length(lengths, batch_items=2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 2], [0]]


def test_shuffled_batches_hold_every_row_once_and_depend_on_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(3, 40, size=1001)
    first = shuffled_batches(lengths, batch_items=8, seed=3, epoch=0)
    assert sorted(np.concatenate(first).tolist()) == list(range(1001))
    assert all(
        (a == b).all() for a, b in zip(first, shuffled_batches(lengths, batch_items=8, seed=3, epoch=0), strict=True)
    )
    other = shuffled_batches(lengths, batch_items=8, seed=3, epoch=1)
    assert any(a.tolist() != b.tolist() for a, b in zip(first, other, strict=True))


def test_shuffled_batches_hold_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(3, 40, size=2048)
    batches = shuffled_batches(lengths, batch_items=32, seed=0, epoch=0)
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    assert padded < 1.1 * lengths.sum()
