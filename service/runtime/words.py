"""Plain English text to ids by remembered words: what BERT's tokenizer gives, in a third of its time.

BERT's tokenizer splits a text at white space and around punctuation, and cuts each word into pieces whatever stands
beside it; so a word that was seen before need not be cut again. What is not plain ASCII, and tokenizers of other kinds,
are not for here.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

# what of ASCII is left alone or is white space; "[" may begin a special token that stands in a text
_PLAIN = re.compile(r"[\t\n\r -Z\\-~]*")
_WORDS = {True: re.compile(r"[a-z0-9]+|[^\sa-z0-9]"), False: re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]")}
_SPECIAL_PROCESSORS = (None, "TemplateProcessing", "BertProcessing")
# longer ones are hardly words
MAX_WORD_CHARACTERS = 24
# some three megabytes; when there are more, all are forgotten
MAX_WORDS = 1 << 14
MAX_TEXT_CHARACTERS = 1 << 12


class Words:
    """The words that were seen, each with its ids. Safe from several threads: each step on the dictionary is atomic."""

    def __init__(
        self, cut: Callable[[str], list[int]], *, around: tuple[list[int], list[int]], lowercase: bool
    ) -> None:
        """Know no word yet.

        Args:
            cut: the ids of one word, without special tokens.
            around: special tokens before and after every text.
            lowercase: whether capitals count as small letters.
        """
        self._cut = cut
        self._before, self._after = map(_raw, around)
        self._lowercase = lowercase
        self._split = _WORDS[lowercase].findall
        # subtle: as they stand in an array, which is made by joining them, without a look at each number
        self._known: dict[str, bytes] = {}

    def ids(self, text: str) -> npt.NDArray[np.int64] | None:
        """The ids of a text, int64 [T], special tokens included; None: it is not plain, or too long for here."""
        if len(text) > MAX_TEXT_CHARACTERS or _PLAIN.fullmatch(text) is None:
            return None
        words = self._split(text.lower() if self._lowercase else text)
        known = self._known
        try:
            pieces = [known[word] for word in words]
        except KeyError:
            pieces = [known.get(word) or self._learn(word) for word in words]
        return np.frombuffer(b"".join((self._before, *pieces, self._after)), dtype=np.int64)

    def _learn(self, word: str) -> bytes:
        pieces = _raw(self._cut(word))
        if len(self._known) >= MAX_WORDS:
            self._known.clear()
        if len(word) <= MAX_WORD_CHARACTERS:
            self._known[word] = pieces
        return pieces


def _raw(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.int64).tobytes()


def words_of(tokenizer: Tokenizer) -> Words | None:
    """The words of a tokenizer of BERT's kind; None: it is of another."""
    document = json.loads(tokenizer.to_str())
    if not _is_of_the_kind(document):
        return None
    around = _around(tokenizer)
    if around is None:
        return None

    def cut(word: str) -> list[int]:
        ids: list[int] = tokenizer.encode(word, add_special_tokens=False).ids
        return ids

    return Words(cut, around=around, lowercase=document["normalizer"]["lowercase"])


def _is_of_the_kind(document: dict[str, Any]) -> bool:
    kinds = [(document[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model", "post_processor")]
    return (
        kinds[:3] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and kinds[3] in _SPECIAL_PROCESSORS
        and all(added["content"].startswith("[") for added in document["added_tokens"])
    )


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """The special tokens before and after a text, all of type 0; None: they are not the same around every text."""
    empty, bare, full = (
        tokenizer.encode("").ids,
        tokenizer.encode("a a", add_special_tokens=False).ids,
        tokenizer.encode("a a"),
    )
    for place in range(len(empty) + 1):
        before, after = empty[:place], empty[place:]
        if full.ids == [*before, *bare, *after] and not any(full.type_ids):
            return before, after
    return None
