"""Remembered words give what the tokenizer gives, for every text that they take."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from service.runtime import words as module
from service.runtime.encode import Encoded, Encoder, Text
from service.runtime.words import Words, words_of

VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits, *string.punctuation,
    *(f"##{character}" for character in string.ascii_lowercase + string.digits), "good", "film", "##ing", "un", "##der",
]  # fmt: skip


def _bert(*, lowercase: bool = True, special: bool = True, added: tuple[str, ...] = ("[CLS]", "[SEP]")) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(added))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return tokenizer


KINDS = {"usual": _bert(), "cased": _bert(lowercase=False), "bare": _bert(special=False)}
WORDS = {kind: words_of(tokenizer) for kind, tokenizer in KINDS.items()}
WORDY = st.lists(
    st.sampled_from(["Good", "FILMing", "under", "a", "x1", " ", "  ", "\n", "\t", ",", "don't", "[SEP]", "é"])
)


def _alone(words: Words, text: str) -> npt.NDArray[np.int64] | None:
    return words.ids([text])[0]


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(
    text=st.text(st.characters(max_codepoint=0x17F)) | WORDY.map("".join) | st.text(st.sampled_from(string.printable))
)
def test_what_is_taken_is_what_the_tokenizer_gives(kind: str, text: str) -> None:
    words, tokenizer = WORDS[kind], KINDS[kind]
    assert words is not None
    for _ in range(2):
        found = _alone(words, text)
        assert found is None or found.tolist() == tokenizer.encode(text).ids


@pytest.mark.parametrize("text", ["", " ", "good film", "It isn't good, is it?\n", "x" * 120, "a-b_c@d.e", "1,000.50$"])
def test_plain_text_is_taken(text: str) -> None:
    for kind, words in WORDS.items():
        assert words is not None
        found = _alone(words, text)
        assert found is not None
        assert found.tolist() == KINDS[kind].encode(text).ids


@pytest.mark.parametrize("text", ["é", "good\x00film", "a\x7f", "a\x1cb", "[SEP]", "a [", "’", "x" * (1 << 12) + "x"])
def test_other_text_is_not(text: str) -> None:
    assert all(words is not None and _alone(words, text) is None for words in WORDS.values())


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(texts=st.lists(st.text(st.sampled_from(string.printable)) | WORDY.map("".join), max_size=6))
def test_several_texts_at_once_are_what_each_is_alone(kind: str, texts: list[str]) -> None:
    words = WORDS[kind]
    assert words is not None
    alone = [_alone(words, text) for text in texts]
    together = words.ids(texts)
    assert [None if ids is None else ids.tolist() for ids in together] == [
        None if ids is None else ids.tolist() for ids in alone
    ]


@pytest.mark.parametrize("texts", [["good", "a"], ["", ""], ["good film", "", "x1, under"], ["a " * 1000, "a " * 1000]])
def test_several_plain_texts_are_read_as_one(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = WORDS["usual"]
    assert words is not None
    read = _reads(monkeypatch)
    for text, ids in zip(texts, words.ids(texts), strict=True):
        assert ids is not None
        assert ids.tolist() == KINDS["usual"].encode(text).ids
    assert len(read) == 1


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read at once, each time."""
    read: list[str] = []
    one = Words._ids

    def note(words: Words, text: str) -> npt.NDArray[np.int64]:
        read.append(text)
        return one(words, text)

    monkeypatch.setattr(Words, "_ids", note)
    return read


@pytest.mark.parametrize("odd", ["a [ b", "[", "é", "a\x00", "x" * (1 << 12) + "x"])
def test_a_text_that_is_not_plain_leaves_the_others_together(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, read = WORDS["usual"], _reads(monkeypatch)
    assert words is not None
    first, second, third = words.ids(["good", odd, "film"])
    assert second is None
    for text, ids in (("good", first), ("film", third)):
        assert ids is not None
        assert ids.tolist() == KINDS["usual"].encode(text).ids
    assert read == ["good [ film"]


def test_many_texts_are_read_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    words, read, texts = WORDS["usual"], _reads(monkeypatch), ["good " * 300] * 5 + ["x " * 2048]
    assert words is not None
    found = words.ids(texts)
    assert [None if ids is None else ids.tolist() for ids in found] == [
        KINDS["usual"].encode(text).ids for text in texts
    ]
    assert [text.count("[") for text in read] == [1, 1, 0, 0]
    assert max(map(len, read)) <= module.MAX_TEXT_CHARACTERS


def test_a_word_that_is_the_first_special_token_is_told_from_a_beginning() -> None:
    words = Words(lambda word: [9] if word == "nine" else [1], around=([9], [8]), lowercase=True)
    found = words.ids(["a nine", "nine"])
    assert [None if ids is None else ids.tolist() for ids in found] == [[9, 1, 9, 8], [9, 9, 8]]


def _other(**parts: object) -> Tokenizer:
    tokenizer = _bert()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        _bert(added=("[CLS]", "[SEP]", "good")),
        _other(pre_tokenizer=pre_tokenizers.Whitespace()),
        _other(normalizer=normalizers.Lowercase()),
        _other(model=models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
        _other(post_processor=processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))),
        _other(post_processor=processors.TemplateProcessing(single="$A:1", pair="$A $B")),
        _other(
            post_processor=processors.TemplateProcessing(
                single="[CLS] $A [SEP] $A", pair="$A $B", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        ),
    ],
)
def test_tokenizers_of_other_kinds(tokenizer: Tokenizer) -> None:
    assert words_of(tokenizer) is None


def _noted(monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[Words, list[str]]:
    """Words of which each is one id, its length, and which were cut so far."""
    monkeypatch.setattr(module, "MAX_CHUNKS", most)
    cut: list[str] = []

    def note(word: str) -> list[int]:
        cut.append(word)
        return [len(word)]

    return Words(note, around=([9], []), lowercase=True), cut


def test_words_of_two_halves_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    words, cut = _noted(monkeypatch, most=3)
    for text in ("a bb a", "A", "ccc", "dddd", "a", "eeeee", "ffffff", "a", "bb"):
        _alone(words, text)
        assert len(words._known) <= 3 + 1
        assert len(words._known.older) <= 3 + 1
    assert cut == ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "bb"]


def test_the_words_of_text_without_spaces_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    words, cut = _noted(monkeypatch, most=100)
    for _ in range(2):
        found = _alone(words, "/".join(["a", "bb"] * 20))
        assert found is not None
        assert found.tolist() == [9, *([1, 1, 2, 1] * 20)[:-1]]
    assert cut == ["a", "/", "bb"]


def test_long_words_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    words, cut = _noted(monkeypatch, most=3)
    for _ in range(2):
        found = _alone(words, "x" * 30)
        assert found is not None
        assert found.tolist() == [9, 30]
    assert cut == ["x" * 30] * 2


def test_a_piece_longer_than_a_word_may_be_is_no_word() -> None:
    tokenizer = _bert()
    tokenizer.model = models.WordPiece(
        {**{token: number for number, token in enumerate(VOCABULARY)}, "longest": 999},
        unk_token="[UNK]",
        max_input_chars_per_word=6,
    )
    words = words_of(tokenizer)
    assert words is not None
    found = _alone(words, "longest film")
    assert found is not None
    assert found.tolist() == tokenizer.encode("longest film").ids


def test_an_encoder_with_and_without_them(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(_bert().to_str())
    with_words, without = (Encoder(tmp_path / "tokenizer.json", max_tokens=12, pad_id=0) for _ in range(2))
    without._words = None
    plain = ["good film", "", "good " * 40, "un-der"]
    for texts in (plain, [*plain, "é good", "[SEP] x"], ["good film", ("good", "film")]):
        for truncate in ("end", "start"):
            for one, other in zip(
                with_words.encode(texts, truncate=truncate), without.encode(texts, truncate=truncate), strict=True
            ):
                assert one.input_ids.tolist() == other.input_ids.tolist()
                assert one.token_type_ids.tolist() == other.token_type_ids.tolist()
                assert (one.tokens, one.kept) == (other.tokens, other.kept)


def test_plain_texts_are_not_for_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(_bert().to_str())
    encoder = Encoder(tmp_path / "tokenizer.json", max_tokens=12, pad_id=0)
    cut: list[object] = []
    whole = encoder._cut

    def note(texts: Sequence[Text], **more: Any) -> list[Encoded]:
        cut.extend(texts)
        return whole(texts, **more)

    monkeypatch.setattr(encoder, "_cut", note)
    encoder.encode(["good film", "é good", "good " * 40, "[SEP] x"])
    assert cut == ["é good", "[SEP] x"]
