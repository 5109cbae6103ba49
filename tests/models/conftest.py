"""A BERT of two layers with forty words, as a Hugging Face directory: trains in a second."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from models.data.rows import Row

WORDS = ("card lost stolen money sent where is my the a refund wait late transfer failed again good bad film").split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_document() -> dict:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *(w for w in WORDS if len(w) > 1)]
    return {
        "version": "1.0",
        "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            {
                "id": at,
                "content": content,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for at, content in enumerate(SPECIAL)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
            ],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(vocabulary)},
        },
    }


def config(**more) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer_document()["model"]["vocab"]),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        **more,
    )


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return json.dumps(tokenizer_document()).encode()


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory, tokenizer_json) -> Path:
    """A bare encoder."""
    directory = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(config(), add_pooling_layer=False).save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes(tokenizer_json)
    return directory


@pytest.fixture(scope="session")
def classifier_directory(tmp_path_factory, tokenizer_json) -> Path:
    """A sequence classifier with its own head and label names."""
    directory = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    names = {0: "negative", 1: "positive"}
    BertForSequenceClassification(config(id2label=names, label2id={v: k for k, v in names.items()})).save_pretrained(
        directory
    )
    (directory / "tokenizer.json").write_bytes(tokenizer_json)
    return directory


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """Three labels that one word each decides."""
    deciding = {"lost_card": "lost", "refund": "refund", "transfer": "transfer"}
    frames = ["where is my {}", "the {} failed again", "my {}", "{} is late", "a {} wait", "sent the {}"]
    return [Row(frame.format(word), label) for frame in frames for label, word in deciding.items()]
