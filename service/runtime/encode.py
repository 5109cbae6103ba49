"""Texts to token ids, and ids to padded batches. B items, T tokens.

The tokenizer itself neither pads nor truncates: padding would make an item's ids depend on its company, and
truncation there would hide how much was dropped. Both are done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from service.errors import FieldProblem, GraphMismatch, InvalidInput
from service.runtime.words import Words, words_of

Ids = npt.NDArray[np.int64]
Text = str | tuple[str, str]
Truncate = Literal["error", "end", "start"]

# read of one text; what tokenizing costs (some 500 bytes and 2 us a token, a token a character at worst) is bounded so
MAX_CHARACTERS = 1 << 18
TOO_LONG = 'an input is too long and `truncate` is "error"'


@dataclass(slots=True, eq=False)
class Encoded:
    """One text, or one joint pair, as ids. Nobody changes one.

    subtle: not frozen, since then each costs 0.5 us instead of 0.2, and every text is one.

    Attributes:
        input_ids: int64 [T], special tokens included.
        token_type_ids: int64 [T], 1 for the second text of a pair.
        tokens: how many the whole input has, special tokens included. Of a text above `MAX_CHARACTERS`, what was not
            read counts as one.
        kept: how many are in `input_ids`.
    """

    input_ids: Ids
    token_type_ids: Ids
    tokens: int
    kept: int

    @property
    def dropped(self) -> int:
        """Tokens cut off."""
        return self.tokens - self.kept

    @property
    def truncated(self) -> bool:
        """Whether anything was cut off."""
        return self.kept < self.tokens

    @property
    def billed(self) -> int:
        """Tokens that count against a quota."""
        return self.kept

    @property
    def fingerprint(self) -> bytes:
        """The same for the same ids."""
        return self.input_ids.tobytes()


@dataclass(slots=True, eq=False)
class EncodedPair(Encoded):
    """Two texts that are read apart, each with its special tokens: the first one's ids, then the second one's.

    Attributes:
        first_kept: how many are the first one's; the token types are 0 there and 1 beyond.
    """

    first_kept: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """One text, or one joint pair, as the pieces that are run.

    Attributes:
        pieces: at least one; several where it is longer than the student takes.
        tokens: how many the whole input has, as for `Encoded`.
        kept: how many different ones are in the pieces.
    """

    pieces: tuple[Encoded, ...]
    tokens: int
    kept: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a text: `start` and `stop` are where it stands, in characters; None for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Encoder:
    """A bundle's tokenizer with its length limit. Safe from several threads once made."""

    def __init__(self, tokenizer_json: Path | bytes, *, max_tokens: int, pad_id: int, apart: bool = False) -> None:
        """Load a tokenizer.

        Args:
            tokenizer_json: a Hugging Face `tokenizer.json`, or its bytes.
            max_tokens: the longest sequence the student takes, special tokens included.
            pad_id: the id that fills short rows of a batch.
            apart: whether the texts of a pair are read apart instead of as one sequence.
        Raises:
            GraphMismatch: it does not load, or adds more special tokens than fit.
        """
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self._apart = apart
        self._tokenizer = _load(tokenizer_json)
        if self._tokenizer.num_special_tokens_to_add(False) > max_tokens:
            raise GraphMismatch(f"tokenizer: its special tokens alone exceed max_tokens = {max_tokens}")
        self._words = words_of(self._tokenizer)
        no_types = np.zeros(max_tokens, dtype=np.int64)
        no_types.flags.writeable = False
        # of each length
        self._no_types = [no_types[:tokens] for tokens in range(max_tokens + 1)]

    def encode(self, texts: Sequence[Text], *, truncate: Truncate = "end") -> list[Encoded]:
        """Turn texts into ids; each result depends on its own text only.

        Args:
            texts: strings, or pairs. The empty string is fine.
            truncate: what to do with an input longer than `max_tokens`: refuse it, cut its end or cut its start.
                Special tokens always stay; of a pair that is one sequence, the longer text is cut first; of one that
                is read apart, each text may have `max_tokens`. No more than `MAX_CHARACTERS` of
                a text are read.
        Returns: at least one token each: where a text has none and none is added, the padding token.
        Raises:
            InvalidInput: a string is not Unicode (lone surrogate), or is too long under "error"; names `/inputs/I`.
        """
        cut_start = truncate == "start"
        encoded = self._remembered(texts, cut_start)
        rest = [place for place, one in enumerate(encoded) if one is None]
        if rest:
            cut = self._cut([texts[place] for place in rest], cut_start=cut_start, places=rest)
            for place, one in zip(rest, cut, strict=True):
                encoded[place] = one
        known = [one for one in encoded if one is not None] if rest else cast("list[Encoded]", encoded)
        if truncate == "error":
            self._refuse_long(known)
        return known

    def _remembered(self, texts: Sequence[Text], cut_start: bool) -> list[Encoded | None]:
        """Plain texts, of remembered words; None: it is for the tokenizer.

        Requests have texts or pairs: where there is a pair, all are for the tokenizer.
        """
        words = self._words
        if words is None or not all(isinstance(text, str) for text in texts):
            return [None] * len(texts)
        return [
            None if ids is None or not len(ids) else self._of_words(words, ids, cut_start)
            for ids in words.ids(cast("Sequence[str]", texts))
        ]

    def _of_words(self, words: Words, ids: Ids, cut_start: bool) -> Encoded:
        tokens = len(ids)
        if tokens <= self.max_tokens:
            return Encoded(ids, self._no_types[tokens], tokens, tokens)
        ids = words.cut(ids, self.max_tokens, start=cut_start)
        return Encoded(ids, self._no_types[self.max_tokens], tokens, self.max_tokens)

    def _cut(self, texts: Sequence[Text], *, cut_start: bool, places: Sequence[int]) -> list[Encoded]:
        """What the tokenizer makes of texts, `places` being theirs in the request."""
        if self._apart and not all(isinstance(text, str) for text in texts):
            return self._cut_apart(texts, cut_start=cut_start, places=places)
        unread = [_unread(text) for text in texts]
        if any(unread):
            texts = [_readable(text, cut_start) for text in texts]
        encodings = self._tokenize(texts, places)
        return [self._encoded(*each, cut_start) for each in zip(encodings, unread, strict=True)]

    def _cut_apart(self, texts: Sequence[Text], *, cut_start: bool, places: Sequence[int]) -> list[Encoded]:
        """Pairs of which each text is read by itself; the single texts among them as they are."""
        sizes = [1 if isinstance(text, str) else 2 for text in texts]
        alone = [part for text in texts for part in ((text,) if isinstance(text, str) else text)]
        owners = [place for place, size in zip(places, sizes, strict=True) for _ in range(size)]
        read = iter(self._cut(alone, cut_start=cut_start, places=owners))
        return [next(read) if size == 1 else _paired(next(read), next(read)) for size in sizes]

    def encode_chunks(self, texts: Sequence[Text]) -> list[Chunked]:
        """Turn texts into ids, a long one into overlapping chunks; each result depends on its own text only.

        Of a pair the second text is cut into chunks, and each is read with the first text, which keeps at most half of
        the room unless the second needs less. No more than `MAX_CHARACTERS` of a text are read.

        Raises:
            InvalidInput: a string is not Unicode (lone surrogate).
        """
        unread = [_unread(text) for text in texts]
        if any(unread):
            texts = [_readable(text, False) for text in texts]
        encodings = self._tokenize(texts, range(len(texts)))
        return [self._chunked(*each) for each in zip(texts, encodings, unread, strict=True)]

    def pieces(self, text: str, *, special: bool) -> list[Piece]:
        """The tokens of a text, with the special ones or without; nothing is cut, but what is not read of any text.

        Raises: InvalidInput: it is not Unicode (lone surrogate).
        """
        if not _is_unicode(text):
            raise InvalidInput("an input is not valid Unicode: contains a lone surrogate")
        encoding = self._tokenizer.encode(_readable(text, False), add_special_tokens=special)
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [
            Piece(number, token, True, None, None) if mask else Piece(number, token, False, *offsets)
            for number, token, mask, offsets in rows
        ]

    def _tokenize(self, texts: Sequence[Text], places: Sequence[int]) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch_fast(list(texts))
        except (UnicodeError, TypeError) as error:
            problems = tuple(
                FieldProblem(f"/inputs/{place}", "not valid Unicode: contains a lone surrogate")
                for place, text in zip(places, texts, strict=True)
                if not _is_unicode(text)
            )
            if not problems:
                raise
            raise InvalidInput("an input is not valid Unicode", errors=problems) from error

    def _refuse_long(self, encoded: Sequence[Encoded]) -> None:
        errors = [too_long(i, item, self.max_tokens) for i, item in enumerate(encoded) if item.truncated]
        if errors:
            raise InvalidInput(TOO_LONG, errors=tuple(problem for error in errors for problem in error.errors))

    def _encoded(self, encoding: Encoding, unread: int, cut_start: bool) -> Encoded:
        # subtle: a batch of no tokens at all has no shape that graphs are made for
        ids = np.array(encoding.ids or [self.pad_id], dtype=np.int64)
        types = np.array(encoding.type_ids or [0], dtype=np.int64)
        tokens = len(ids)
        if tokens > self.max_tokens:
            keep = kept_positions(encoding.sequence_ids, max_tokens=self.max_tokens, cut_start=cut_start)
            ids, types = ids[keep], types[keep]
        return Encoded(ids, types, tokens=tokens + unread, kept=len(ids))

    def _chunked(self, text: Text, encoding: Encoding, unread: int) -> Chunked:
        if len(encoding.ids) <= self.max_tokens:
            whole = self._encoded(encoding, unread, False)
            return Chunked((whole,), tokens=whole.tokens, kept=whole.kept)
        ids, types = np.array(encoding.ids, dtype=np.int64), np.array(encoding.type_ids, dtype=np.int64)
        pair = not isinstance(text, str)
        places = chunk_positions(encoding.sequence_ids, max_tokens=self.max_tokens, pair=pair)
        pieces = tuple(Encoded(ids[at], types[at], tokens=len(at), kept=len(at)) for at in places)
        kept = len(np.unique(np.concatenate(places)))
        return Chunked(pieces, tokens=len(ids) + unread, kept=kept)


def _paired(first: Encoded, second: Encoded) -> EncodedPair:
    return EncodedPair(
        np.concatenate([first.input_ids, second.input_ids]),
        np.concatenate([np.zeros_like(first.token_type_ids), np.ones_like(second.token_type_ids)]),
        tokens=first.tokens + second.tokens,
        kept=first.kept + second.kept,
        first_kept=first.kept,
    )


def _load(tokenizer_json: Path | bytes) -> Tokenizer:
    where = "tokenizer" if isinstance(tokenizer_json, bytes) else tokenizer_json.name
    try:
        raw = tokenizer_json if isinstance(tokenizer_json, bytes) else tokenizer_json.read_bytes()
        tokenizer: Tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers has no error class of its own
        raise GraphMismatch(f"{where}: the tokenizer does not load: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def too_long(place: int, item: Encoded, max_tokens: int) -> InvalidInput:
    """The error of an input that may not be cut; names `/inputs/PLACE`."""
    detail = f"{item.tokens} tokens, more than the {max_tokens} this student takes"
    return InvalidInput(detail, errors=(FieldProblem(f"/inputs/{place}", detail),))


def _unread(text: Text) -> int:
    """How many of the strings are longer than what is read of one."""
    if isinstance(text, str):
        return int(len(text) > MAX_CHARACTERS)
    return sum(_unread(part) for part in text)


def _readable(text: Text, cut_start: bool) -> Text:
    part = slice(-MAX_CHARACTERS, None) if cut_start else slice(MAX_CHARACTERS)
    return text[part] if isinstance(text, str) else (text[0][part], text[1][part])


def _is_unicode(text: Text) -> bool:
    try:
        "".join(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def kept_positions(sequence_ids: Sequence[int | None], *, max_tokens: int, cut_start: bool) -> Ids:
    """Which positions of an over-long sequence stay: all special tokens, and each text's share of the rest.

    Args:
        sequence_ids: for each position 0 or 1, the text it belongs to, or None for a special token.
        max_tokens: how many positions may stay.
        cut_start: keep the last tokens of each text instead of the first.

    >>> kept_positions([None, 0, 0, 0, 0, None], max_tokens=4, cut_start=False).tolist()
    [0, 1, 2, 5]
    >>> kept_positions([None, 0, 0, 0, 0, None], max_tokens=4, cut_start=True).tolist()
    [0, 3, 4, 5]
    """
    owner = np.array([-1 if sequence is None else sequence for sequence in sequence_ids])
    special, first, second = (np.flatnonzero(owner == value) for value in (-1, 0, 1))
    shares = longest_first(len(first), len(second), budget=max(max_tokens - len(special), 0))
    parts = [
        own[len(own) - share :] if cut_start else own[:share]
        for own, share in zip((first, second), shares, strict=True)
    ]
    return np.sort(np.concatenate([special, *parts]))[:max_tokens]


def chunk_positions(sequence_ids: Sequence[int | None], *, max_tokens: int, pair: bool) -> list[Ids]:
    """The positions of each chunk of an over-long sequence: all special tokens, and a window of its last text.

    Args:
        sequence_ids: for each position 0 or 1, the text it belongs to, or None for a special token.
        max_tokens: how many positions a chunk may have.
        pair: whether there are two texts, of which the second is cut into chunks; it may be empty.

    >>> [chunk.tolist() for chunk in chunk_positions([None, 0, 0, 0, 0, 0, None], max_tokens=5, pair=False)]
    [[0, 1, 2, 3, 6], [0, 3, 4, 5, 6]]
    >>> [chunk.tolist() for chunk in chunk_positions([None, 0, None, 1, 1, 1, None], max_tokens=6, pair=True)]
    [[0, 1, 2, 3, 4, 6], [0, 1, 2, 4, 5, 6]]
    """
    owner = np.array([-1 if sequence is None else sequence for sequence in sequence_ids])
    special, first, second = (np.flatnonzero(owner == value) for value in (-1, 0, 1))
    query, passage = (first, second) if pair else (first[:0], first)
    room = max(max_tokens - len(special), 1)
    query = query[: max(min(len(query), room // 2), room - len(passage))]
    window = max(room - len(query), 1)
    starts = window_starts(len(passage), window=window)
    return [np.sort(np.concatenate([special, query, passage[at : at + window]]))[:max_tokens] for at in starts]


def window_starts(tokens: int, *, window: int) -> list[int]:
    """Where windows over a text begin: each shares a quarter of itself with the one before, the last one ends the text.

    >>> window_starts(10, window=4)
    [0, 3, 6]
    >>> window_starts(3, window=4)
    [0]
    """
    last = max(tokens - window, 0)
    return [*range(0, last, window - window // 4), last]


def longest_first(first: int, second: int, *, budget: int) -> tuple[int, int]:
    """How many tokens each text of a pair keeps when the longer one is cut until both fit.

    >>> longest_first(2, 100, budget=20)
    (2, 18)
    >>> longest_first(50, 100, budget=21)
    (10, 11)
    """
    short, long = sorted((first, second))
    short_kept = min(short, budget // 2)
    long_kept = min(long, budget - short_kept)
    return (short_kept, long_kept) if first <= second else (long_kept, short_kept)


def pad(batch: Sequence[Encoded], *, pad_id: int, length: int | None = None, with_types: bool = True) -> dict[str, Ids]:
    """Stack encoded items into token inputs.

    Args:
        batch: at least one item.
        pad_id: fills `input_ids` beyond an item's own length.
        length: pad to this many tokens instead of the longest item's.
        with_types: whether anybody reads token types.
    Returns: `input_ids`, `attention_mask`, and with types `token_type_ids`, each int64 [B, T].
    """
    kept = [item.kept for item in batch]
    if min(kept) == max(kept) == (length or kept[0]):
        shape = (len(batch), kept[0])
        feeds: dict[str, Ids] = {
            "input_ids": np.concatenate([item.input_ids for item in batch]).reshape(shape),
            "attention_mask": np.ones(shape, dtype=np.int64),
        }
        if with_types:
            feeds["token_type_ids"] = np.concatenate([item.token_type_ids for item in batch]).reshape(shape)
        return feeds
    lengths = np.array(kept)
    present = np.arange(length or int(lengths.max())) < lengths[:, None]
    input_ids = np.full(present.shape, pad_id, dtype=np.int64)
    input_ids[present] = np.concatenate([item.input_ids for item in batch])
    feeds = {"input_ids": input_ids, "attention_mask": present.astype(np.int64)}
    if with_types:
        token_type_ids = np.zeros(present.shape, dtype=np.int64)
        token_type_ids[present] = np.concatenate([item.token_type_ids for item in batch])
        feeds["token_type_ids"] = token_type_ids
    return feeds
