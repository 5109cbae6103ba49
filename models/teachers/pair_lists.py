"""Lists of pairs for training rankers: flat tokens, batches of whole lists, and their scores as a padded table.

L lists, G passages of the longest list of a batch, P pairs, B lists of a batch, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.teachers.tokens import Indices, Padded, Text, Tokens, tokenise

CHUNK_TOKENS = 4096
"""Padded tokens that run at one time: pairs of like length together, so that little of it is padding."""

Scorer = Callable[[Padded], Tensor]
"""float [P] of a batch of pairs."""


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


def list_scores(score: Scorer, lists: PairLists, rows: Indices) -> Tensor:
    """float32 [B, G]: the scores of the lists `rows`, 0 where a list has ended; gradients flow.

    Args:
        score: run on chunks of at most `CHUNK_TOKENS` padded tokens, pairs in order of length.
    """
    pairs, mask = lists.pairs_of(rows), lists.mask(rows)
    order = np.argsort(lists.tokens.lengths[pairs], kind="stable")
    parts = [score(lists.tokens.padded(pairs[chunk])).float() for chunk in _chunks(lists.tokens.lengths[pairs], order)]
    flat = torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable"))]
    return torch.zeros(mask.shape).masked_scatter(mask, flat)


def _chunks(lengths: Indices, order: Indices) -> list[Indices]:
    """`order`, rising in length, cut so that no chunk has more than `CHUNK_TOKENS` padded tokens."""
    chunks, begin = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - begin) * lengths[order[end]] > CHUNK_TOKENS:
            chunks.append(order[begin:end])
            begin = end
    return chunks
