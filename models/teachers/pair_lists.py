"""Lists of pairs for training rankers: flat tokens, batches of whole lists, and their scores as a padded table.

L lists, G passages of the longest list of a batch, P pairs, B lists of a batch, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.teachers.tokens import Indices, Padded, Text, Tokens, batches_in_order_of_length, tokenise

CHUNK_TOKENS = 4096
"""Padded tokens that run at one time: pairs of like length together, so that little of it is padding."""

Scorer = Callable[[Padded], Tensor]
"""float [P] of a batch of pairs."""

Reader = Callable[[Padded], Tensor]
"""What a batch of texts alone gives, float [B, T, S]."""

Joiner = Callable[[Tensor, Tensor, Padded], Tensor]
"""float [P] of what P queries gave, float [P, Q, S], its mask, int64 [P, Q], and their passages."""


@dataclass(frozen=True, slots=True)
class PairLists:
    """L lists of pairs: list i is pairs `starts[i]:starts[i + 1]` of `tokens`; `grades` float32 [pairs], 0 or more."""

    tokens: Tokens
    starts: Indices
    grades: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Indices:
        """int64 [L]: the longest pair of each list, in tokens; what lists are batched by."""
        return np.maximum.reduceat(self.tokens.lengths, self.starts[:-1])

    def pairs_of(self, rows: Indices) -> Indices:
        """int64 [P]: the pairs of the lists `rows`, list after list."""
        return np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])

    def table(self, rows: Indices, values: npt.NDArray[np.float32]) -> Tensor:
        """float32 [B, G]: the `values` [pairs] of the lists `rows`, 0 where a list has ended."""
        mask = self.mask(rows)
        table = torch.zeros(mask.shape)
        table[mask] = torch.from_numpy(values[self.pairs_of(rows)])
        return table

    def mask(self, rows: Indices) -> Tensor:
        """bool [B, G]: where the lists `rows` have a passage."""
        sizes = torch.from_numpy((self.starts[rows + 1] - self.starts[rows]).astype(np.int64))
        return torch.arange(int(sizes.max()))[None, :] < sizes[:, None]


def pair_lists(
    tokenizer_json: bytes, lists: Sequence[Sequence[Text]], grades: Sequence[Sequence[float]], *, max_tokens: int
) -> PairLists:
    """Tokenise lists of pairs.

    Args:
        tokenizer_json: a Hugging Face `tokenizer.json`.
        lists: L lists of (query, passage), none of them empty.
        grades: one for each pair.
        max_tokens: of a pair, special tokens included.
    """
    flat = [pair for each in lists for pair in each]
    sizes = [len(each) for each in lists]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    tokens = tokenise(tokenizer_json, flat, max_tokens=max_tokens)
    return PairLists(tokens, starts, np.array([grade for each in grades for grade in each], np.float32))


@dataclass(frozen=True, slots=True)
class SplitLists:
    """L lists of a query and its passages, read apart.

    `passages`: the lists, of the passages' tokens alone, types 1. `queries`: the tokens of the L queries, types 0.
    """

    passages: PairLists
    queries: Tokens


def split_lists(
    tokenizer_json: bytes, lists: Sequence[Sequence[Text]], grades: Sequence[Sequence[float]], *, max_tokens: int
) -> SplitLists:
    """Tokenise lists of pairs, each text by itself; the pairs of a list have one query.

    Args: as of `pair_lists`; `max_tokens` of each text.
    """
    apart = [[pair[1] for pair in each] for each in lists]
    passages = pair_lists(tokenizer_json, apart, grades, max_tokens=max_tokens)
    queries = tokenise(tokenizer_json, [each[0][0] for each in lists], max_tokens=max_tokens)
    return SplitLists(replace(passages, tokens=as_second(passages.tokens)), queries)


def as_second(tokens: Tokens) -> Tokens:
    """Texts as the second ones of pairs that are read apart: every type is 1."""
    return replace(tokens, types=np.ones_like(tokens.types))


def feeds_apart(
    tokenizer_json: bytes, pairs: Sequence[tuple[str, str]], *, max_tokens: int, batch_items: int
) -> list[dict[str, Indices]]:
    """Pairs as texts apart, in batches of second texts of like length, each text's inputs under its side.

    Args:
        max_tokens: of each text.
        batch_items: pairs of a batch.
    """
    firsts, seconds = (
        tokenise(tokenizer_json, [pair[side] for pair in pairs], max_tokens=max_tokens) for side in (0, 1)
    )
    sides = {"first": firsts, "second": as_second(seconds)}
    return [
        {f"{side}:{name}": value for side, tokens in sides.items() for name, value in tokens.feeds(rows).items()}
        for rows in batches_in_order_of_length(seconds.lengths, batch_items=batch_items)
    ]


def split_list_scores(read: Reader, join: Joiner, lists: SplitLists, rows: Indices) -> Tensor:
    """float [B, G]: the scores of the lists `rows`, 0 where a list has ended; gradients flow.

    Args:
        read: run once on the lists' queries, which is not done again for each passage.
        join: run on chunks of passages in order of length, with the queries' states.
    """
    pairs, mask = lists.passages.pairs_of(rows), lists.passages.mask(rows)
    asked = lists.queries.padded(rows)
    states, query_of = read(asked), mask.nonzero()[:, 0]
    lengths = lists.passages.tokens.lengths[pairs]
    order = np.argsort(lengths, kind="stable")
    parts = []
    for chunk in _chunks(lengths, order):
        mine = query_of[torch.from_numpy(chunk)]
        passages = lists.passages.tokens.padded(pairs[chunk])
        parts.append(join(states[mine], asked.attention_mask[mine], passages).float())
    return _as_table(torch.cat(parts), order, mask)


def list_scores(score: Scorer, lists: PairLists, rows: Indices) -> Tensor:
    """float32 [B, G]: the scores of the lists `rows`, 0 where a list has ended; gradients flow.

    Args:
        score: run on chunks of at most `CHUNK_TOKENS` padded tokens, pairs in order of length.
    """
    pairs, mask = lists.pairs_of(rows), lists.mask(rows)
    order = np.argsort(lists.tokens.lengths[pairs], kind="stable")
    parts = [score(lists.tokens.padded(pairs[chunk])).float() for chunk in _chunks(lists.tokens.lengths[pairs], order)]
    return _as_table(torch.cat(parts), order, mask)


def _as_table(scores: Tensor, order: Indices, mask: Tensor) -> Tensor:
    """float [B, G] of the scores float [P] of the pairs in `order`."""
    flat = scores[torch.from_numpy(np.argsort(order, kind="stable"))]
    return torch.zeros(mask.shape).masked_scatter(mask, flat)


def _chunks(lengths: Indices, order: Indices) -> list[Indices]:
    """`order`, rising in length, cut so that no chunk has more than `CHUNK_TOKENS` padded tokens."""
    chunks, begin = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - begin) * lengths[order[end]] > CHUNK_TOKENS:
            chunks.append(order[begin:end])
            begin = end
    return chunks
