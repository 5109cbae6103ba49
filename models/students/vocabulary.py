"""The trimmed vocabulary: a WordPiece tokenizer less the tokens the texts do not use."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from models.errors import RecipeInvalid

Text = str | tuple[str, str]

_CHUNK_ITEMS = 20_000


@dataclass(frozen=True, slots=True)
class Trimmed:
    """`tokenizer_json` of the trimmed tokenizer; `kept_ids` int64 [V']: the old id of each new one, rising."""

    tokenizer_json: bytes
    kept_ids: npt.NDArray[np.int64]


def untrimmed(tokenizer_json: bytes) -> Trimmed:
    """The whole vocabulary, without truncation or padding of the tokenizer's own."""
    document = _plain(tokenizer_json)
    size = Tokenizer.from_str(json.dumps(document)).get_vocab_size(with_added_tokens=True)
    return Trimmed(json.dumps(document, ensure_ascii=False).encode(), np.arange(size, dtype=np.int64))


def trim_tokenizer(tokenizer_json: bytes, texts: Sequence[Text], *, min_count: int = 1) -> Trimmed:
    """Keep the tokens that occur at least `min_count` times in `texts`, and what unseen words need.

    Special tokens stay, and every token of one character (alone or inside a word) that is ASCII or occurs in a
    kept token, so that other words still become pieces. With `min_count` 1 the texts' tokens do not change.

    Args:
        tokenizer_json: a Hugging Face `tokenizer.json` with a WordPiece model.
        texts: the texts whose tokens are counted.
        min_count: occurrences below which a token is dropped.
    Returns: the tokenizer and the old ids of its tokens.
    Raises: RecipeInvalid: the tokenizer is not a WordPiece one.
    """
    document = _plain(tokenizer_json)
    if document["model"].get("type") != "WordPiece":
        raise RecipeInvalid("student.vocabulary: trimmed needs a teacher with a WordPiece vocabulary; use full")
    vocabulary: dict[str, int] = document["model"]["vocab"]
    counts = _counts(Tokenizer.from_str(json.dumps(document)), texts)
    used = {token for token, index in vocabulary.items() if counts[index] >= min_count}
    kept = sorted(used | _always(document, used), key=lambda token: vocabulary[token])
    new_ids = {token: index for index, token in enumerate(kept)}
    kept_ids = np.array([vocabulary[token] for token in kept], dtype=np.int64)
    return Trimmed(json.dumps(_renumbered(document, new_ids), ensure_ascii=False).encode(), kept_ids)


def _plain(tokenizer_json: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tokenizer_json)
    document["truncation"] = document["padding"] = None
    return document


def _counts(tokenizer: Tokenizer, texts: Sequence[Text]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for begin in range(0, len(texts), _CHUNK_ITEMS):
        for encoding in tokenizer.encode_batch_fast(list(texts[begin : begin + _CHUNK_ITEMS])):
            counts.update(encoding.ids)
    return counts


def _always(document: dict[str, Any], used: Iterable[str]) -> set[str]:
    """The tokens kept whatever their count."""
    model = document["model"]
    prefix = model["continuing_subword_prefix"]
    characters = {character for token in used for character in token.removeprefix(prefix)}
    special = {added["content"] for added in document["added_tokens"]} | {model["unk_token"]}
    short = {
        token
        for token in model["vocab"]
        if len(bare := token.removeprefix(prefix)) == 1 and (bare.isascii() or bare in characters)
    }
    return short | (special & set(model["vocab"]))


def _renumbered(document: dict[str, Any], new_ids: dict[str, int]) -> dict[str, Any]:
    document["model"]["vocab"] = new_ids
    for added in document["added_tokens"]:
        added["id"] = new_ids[added["content"]]
    processor = document.get("post_processor") or {}
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [new_ids[token] for token in special["tokens"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], new_ids[processor[name][0]]]
    return document
