"""Texts as token ids for the offline half: flat arrays, batches of like length, padded tensors.

The ids are those the service's encoder gives (truncated at the end, special tokens kept); training needs them
for hundreds of thousands of texts at once, so they are held flat.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

# B items, T tokens, N texts

Text = str | tuple[str, str]
Indices = npt.NDArray[np.int64]

_CHUNK_ITEMS = 20_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of N texts, one after another.

    `ids` int32 and `types` int8 are flat [total]; text i is at `starts[i]:starts[i + 1]` (`starts` int64 [N + 1]).
    """

    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.int8]
    starts: Indices

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Indices:
        """int64 [N], tokens of each text, special ones included."""
        return np.diff(self.starts)

    def padded(self, rows: Sequence[int] | Indices) -> "Padded":
        """The texts `rows` as one batch, padded with id 0 to the longest of them."""
        begins, lengths = self.starts[rows], self.lengths[rows]
        mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
        flat = np.concatenate([np.arange(b, b + n) for b, n in zip(begins, lengths, strict=True)])
        ids, types = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.int64)
        ids[mask], types[mask] = self.ids[flat], self.types[flat]
        return Padded(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(types))

    def feeds(self, rows: Sequence[int] | Indices) -> dict[str, Indices]:
        """The same as a graph reads them, int64 [B, T] by name."""
        padded = self.padded(rows)
        return {
            "input_ids": padded.input_ids.numpy(),
            "attention_mask": padded.attention_mask.numpy(),
            "token_type_ids": padded.token_type_ids.numpy(),
        }


@dataclass(frozen=True, slots=True)
class Padded:
    """One batch, each int64 [B, T]; `attention_mask` is 1 on tokens and 0 on padding."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor


def plain_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, with any truncation and padding of its own taken off."""
    document = json.loads(tokenizer_json)
    document["truncation"] = document["padding"] = None
    return Tokenizer.from_str(json.dumps(document))


def tokenise(tokenizer_json: bytes, texts: Sequence[Text], *, max_tokens: int) -> Tokens:
    """Token ids of `texts`, each cut at its end to `max_tokens` with the special tokens kept.

    Args:
        tokenizer_json: a Hugging Face `tokenizer.json`.
        texts: N texts or pairs of texts.
        max_tokens: longest kept sequence, special tokens included.
    Returns: the ids, in the order of `texts`.
    """
    tokenizer = plain_tokenizer(tokenizer_json)
    tokenizer.enable_truncation(max_tokens)
    ids: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
    types: list[npt.NDArray[np.int8]] = [np.zeros(0, np.int8)]
    lengths: list[int] = []
    for begin in range(0, len(texts), _CHUNK_ITEMS):
        encodings = tokenizer.encode_batch_fast(list(texts[begin : begin + _CHUNK_ITEMS]))
        lengths += [len(encoding) for encoding in encodings]
        ids.append(np.fromiter(_chain(e.ids for e in encodings), np.int32))
        types.append(np.fromiter(_chain(e.type_ids for e in encodings), np.int8))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Tokens(np.concatenate(ids), np.concatenate(types), starts)


def _chain(lists: Iterable[list[int]]) -> Iterable[int]:
    for items in lists:
        yield from items


def batches_in_order_of_length(lengths: Indices, *, batch_items: int) -> list[Indices]:
    """Rows in order of length, cut into batches: the least padding. For labelling and evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[begin : begin + batch_items] for begin in range(0, len(order), batch_items)]


def feeds_in_order_of_length(tokens: Tokens, *, batch_items: int) -> list[dict[str, Indices]]:
    """Padded batches of all texts as a graph reads them, the least padding: for the ranges of int8."""
    return [tokens.feeds(rows) for rows in batches_in_order_of_length(tokens.lengths, batch_items=batch_items)]


def shuffled_batches(lengths: Indices, *, batch_items: int, seed: int, epoch: int) -> list[Indices]:
    """The batches of one epoch: shuffled, of like length inside a batch, in shuffled order. Same seed, same batches.

    Rows are shuffled, sorted by length within windows of 64 batches and cut; the last, short batch is kept.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    window = 64 * batch_items
    batches: list[Indices] = []
    for begin in range(0, len(order), window):
        rows = order[begin : begin + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[at : at + batch_items] for at in range(0, len(rows), batch_items)]
    return [batches[at] for at in random.permutation(len(batches))]
