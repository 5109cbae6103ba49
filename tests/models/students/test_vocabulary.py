"""Trimming a vocabulary keeps the texts' tokens, and pieces for words it has not seen."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from models.errors import RecipeInvalid
from models.students.vocabulary import trim_tokenizer, untrimmed

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "é", "##é", "card", "##s", "film", "lost"]


def document() -> dict:
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(VOCABULARY))}
    added = [
        {
            "id": vocabulary[token],
            "content": token,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token in SPECIAL
        if token != "[unused0]"
    ]
    return {
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


ORIGINAL = json.dumps(document()).encode()
TEXTS = ["card", "cards lost", "cards"]


def template() -> bytes:
    """The same tokenizer with a TemplateProcessing post-processor, as newer files have it."""
    changed = document()
    changed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [3], "tokens": ["[CLS]"]}},
    }
    return json.dumps(changed).encode()


def tokens(tokenizer_json: bytes, text: str) -> list[str]:
    return Tokenizer.from_str(tokenizer_json.decode()).encode(text).tokens


@pytest.mark.parametrize("original", [ORIGINAL, template()], ids=["bert", "template"])
def test_the_texts_tokens_do_not_change_and_old_ids_are_known(original):
    trimmed = trim_tokenizer(original, TEXTS)
    whole = Tokenizer.from_str(untrimmed(original).tokenizer_json.decode())
    small = Tokenizer.from_str(trimmed.tokenizer_json.decode())
    for text in TEXTS:
        assert small.encode(text).tokens == whole.encode(text).tokens
        assert trimmed.kept_ids[small.encode(text).ids].tolist() == whole.encode(text).ids


def test_unused_tokens_go_and_special_tokens_and_letters_stay():
    trimmed = trim_tokenizer(ORIGINAL, TEXTS)
    vocabulary = json.loads(trimmed.tokenizer_json)["model"]["vocab"]
    assert "film" not in vocabulary
    assert "[unused0]" not in vocabulary
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "card", "lost", "f", "##m"} <= set(vocabulary)
    assert vocabulary["[PAD]"] == 0
    assert sorted(vocabulary.values()) == list(range(len(trimmed.kept_ids)))
    assert (np.diff(trimmed.kept_ids) > 0).all()


def test_a_letter_beyond_ascii_stays_where_a_kept_token_has_it():
    assert "##é" not in json.loads(trim_tokenizer(ORIGINAL, TEXTS).tokenizer_json)["model"]["vocab"]
    kept = trim_tokenizer(ORIGINAL, [*TEXTS, "é"])
    assert "##é" in json.loads(kept.tokenizer_json)["model"]["vocab"]


def test_an_unseen_word_becomes_pieces():
    assert tokens(trim_tokenizer(ORIGINAL, TEXTS).tokenizer_json, "film") == [
        "[CLS]",
        "f",
        "##i",
        "##l",
        "##m",
        "[SEP]",
    ]


def test_a_rare_token_is_dropped_and_spelled():
    trimmed = trim_tokenizer(ORIGINAL, TEXTS, min_count=2)
    assert tokens(trimmed.tokenizer_json, "lost")[1:-1] == ["l", "##o", "##s", "##t"]
    assert tokens(trimmed.tokenizer_json, "cards")[1:-1] == ["card", "##s"]


def test_the_tokenizers_own_truncation_is_off():
    assert len(tokens(trim_tokenizer(ORIGINAL, TEXTS).tokenizer_json, "card card card")) == 5
    assert len(tokens(untrimmed(ORIGINAL).tokenizer_json, "card card card")) == 5


def test_untrimmed_keeps_every_id():
    assert untrimmed(ORIGINAL).kept_ids.tolist() == list(range(len(document()["model"]["vocab"])))


def test_another_kind_of_tokenizer_is_refused():
    other = document()
    other["model"] = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    with pytest.raises(RecipeInvalid, match="WordPiece"):
        trim_tokenizer(json.dumps(other).encode(), TEXTS)
