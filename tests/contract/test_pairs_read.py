"""A pair is read alike by the two halves: training cuts it as the service does, whatever its texts' lengths."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.teachers.tokens import tokenise
from service.runtime.encode import Encoder

Pair = tuple[str, str]

MAX_TOKENS = 24
LONG = "very slow card and my film was not great but it is fast "
EDGES: list[Pair] = [
    ("", ""),
    ("good", ""),
    ("", "good"),
    ("good", "good"),
    (LONG * 9, "bad"),
    ("bad", LONG * 9),
    (LONG * 9, LONG * 9),
    (LONG * 9, ""),
    ("zzzz qqqq 0000 " * 9, "?!,.-'" * 4),
    ("😀 猫 where", "\x00\x1f card"),
]
"""Pairs that a wrong cut or a wrong type of token would show on."""


def assert_read_alike(tokenizer_json: bytes, pairs: Sequence[Pair], max_tokens: int) -> None:
    """The ids and types of training are those of the service."""
    trained = tokenise(tokenizer_json, pairs, max_tokens=max_tokens)
    served = Encoder(tokenizer_json, max_tokens=max_tokens, pad_id=0).encode(pairs)
    for at, (pair, item) in enumerate(zip(pairs, served, strict=True)):
        own = slice(trained.starts[at], trained.starts[at + 1])
        assert trained.ids[own].tolist() == item.input_ids.tolist(), (max_tokens, pair)
        assert trained.types[own].tolist() == item.token_type_ids.tolist(), (max_tokens, pair)
        assert item.kept <= max_tokens


@pytest.mark.parametrize("max_tokens", [3, 4, 5, 8, 9, 16, 23, 24])
def test_pairs_of_every_length_are_cut_as_in_training(tokenizer_json: bytes, max_tokens: int) -> None:
    pairs = [("film " * first, "zzz card " * second) for first in range(0, 27, 2) for second in range(9)]
    assert_read_alike(tokenizer_json, [*pairs, *((b, a) for a, b in pairs), *EDGES], max_tokens)


@given(
    first=st.text(max_size=120),
    second=st.text(max_size=120),
    max_tokens=st.integers(min_value=3, max_value=40),
)
def test_any_pair_is_cut_as_in_training(tokenizer_json: bytes, first: str, second: str, max_tokens: int) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        (first + second).encode()
        assert_read_alike(tokenizer_json, [(first, second)], max_tokens)


def test_both_texts_of_a_long_pair_are_read(tokenizer_json: bytes) -> None:
    encoder = Encoder(tokenizer_json, max_tokens=MAX_TOKENS, pad_id=0)
    item, short, equal = encoder.encode([(LONG * 9, "bad awful"), ("bad awful", LONG * 9), (LONG * 9, LONG * 9)])
    assert item.token_type_ids.tolist() == [0] * 21 + [1] * 3
    assert short.token_type_ids.tolist() == [0] * 4 + [1] * 20
    assert np.bincount(equal.token_type_ids).tolist() == [12, 12]
    assert all(each.kept == MAX_TOKENS and each.truncated for each in (item, short, equal))
