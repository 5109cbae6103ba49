"""The bag of n-grams: rows of word pieces and of hashed n-grams of them, averaged order by order, then one inner layer.

The hash is arithmetic on token ids inside the graph, so that a text needs no other preparation than for any student.
Its numbers stay below 2^31, since some runtimes compute int64 in 32 bits:

    bucket(a, b, c) = (a * m1 + b * m2 + c * m3 + o) mod buckets        (o: another one for each order)

Word pieces have rows of their own; the rows of longer n-grams start at zero, so that one that was never seen adds
nothing. Markers (the tokens a tokenizer puts around every text) have zero rows alone, and tell begin and end in
longer n-grams.

Source: Ye et al. 2022 (sparse distillation), arXiv:2110.08536; Joulin et al. 2016 (fastText), arXiv:1607.01759.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.students.encoder import Outputs

# B items, T tokens, O orders, N = O * T n-grams, V vocabulary, P buckets, W width of a row, C labels

_LIMIT = 2**31
_LARGEST_MULTIPLIER = 2**20
_SHARES = (0.97, 0.61, 0.79, 0.47)
_OFFSET = 7_919
_REFERENCE_TOKENS = 32
_TRAINED_ROW_STD = 0.05


@dataclass(frozen=True, slots=True)
class NgramConfig:
    """The bag's shape. `width` is C; `rows` is W; `buckets` is P, a prime; `markers` are ids around every text."""

    vocabulary: int
    width: int
    orders: int
    buckets: int
    rows: int
    hidden: int
    max_tokens: int
    markers: tuple[int, ...] = ()
    dropout: float = 0.0
    feature_dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The n-grams of a batch, order by order: their rows' `places` int64 [B, N] and `weights` float [B, N], 0 beyond a
    text and elsewhere 1 / the number of n-grams of that order in it."""

    places: Tensor
    weights: Tensor


def next_prime(number: int) -> int:
    """The least prime not below `number`.

    >>> next_prime(65_536)
    65537
    """
    while any(number % factor == 0 for factor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


def multipliers(config: NgramConfig) -> tuple[int, ...]:
    """m1, m2, ...: primes, one for each place in an n-gram, so large that sums of products stay below 2^31."""
    most = (_LIMIT - config.orders * _OFFSET) // (config.orders * config.vocabulary)
    return tuple(next_prime(int(share * min(most, _LARGEST_MULTIPLIER))) for share in _SHARES[: config.orders])


def ngrams_of(input_ids: Tensor, attention_mask: Tensor, config: NgramConfig) -> Ngrams:
    """Where the rows of every n-gram are, and what they weigh.

    Args:
        input_ids, attention_mask: int64 [B, T], padded on the right.
        config: the bag's shape.
    """
    tokens, longer = input_ids.shape[1], config.orders - 1
    ids = nn.functional.pad(input_ids, (0, longer))
    mask = nn.functional.pad(attention_mask.to(torch.float32), (0, longer))
    lengths = mask.sum(1, keepdim=True)
    places = [input_ids]
    weights = [mask[:, :tokens] / (lengths - len(config.markers)).clamp(min=1.0)]
    factors = multipliers(config)
    key = input_ids * factors[0]
    for order in range(2, config.orders + 1):
        key = key + ids[:, order - 1 : tokens + order - 1] * factors[order - 1]
        places.append((key + order * _OFFSET) % config.buckets + config.vocabulary)
        weights.append(mask[:, order - 1 : tokens + order - 1] / (lengths - (order - 1)).clamp(min=1.0))
    return Ngrams(torch.cat(places, dim=1), torch.cat(weights, dim=1))


class BagHead(nn.Module):
    """One inner layer, logits."""

    def __init__(self, config: NgramConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.rows, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.hidden, config.width)

    def forward(self, mean: Tensor) -> Tensor:
        """float [B, C] of float [B, W]."""
        logits: Tensor = self.logits(self.dropout(torch.relu(self.inner(mean))))
        return logits


class NgramStudent(nn.Module):
    """The bag as torch trains it; `stages` gives what is exported. Both compute the same.

    Invariant: the rows of markers are zero and never trained. Gradients of `table` are sparse.
    """

    def __init__(self, config: NgramConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(config.vocabulary + config.buckets, config.rows))
        self.head = BagHead(config)
        is_marker = torch.zeros(config.vocabulary + config.buckets, dtype=torch.bool)
        is_marker[list(config.markers)] = True
        self.register_buffer("is_marker", is_marker, persistent=False)
        self.is_marker: Tensor
        for part in (self.head.inner, self.head.logits):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        self.set_pieces(torch.randn(config.vocabulary, config.rows) * _TRAINED_ROW_STD)

    def set_pieces(self, rows: Tensor) -> None:
        """Let the word pieces start from float32 [V, W]."""
        with torch.no_grad():
            self.table[: self.config.vocabulary] = rows
            self.table[self.is_marker] = 0.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """The one exit's logits.

        Args:
            input_ids, attention_mask: int64 [B, T], padded on the right.
        """
        found = ngrams_of(input_ids, attention_mask, self.config)
        counts = (found.weights > 0) & ~self.is_marker[found.places]
        share = self.config.feature_dropout if self.training else 0.0
        if share:
            counts &= torch.rand(counts.shape) >= share
        per_text = counts.sum(1)
        mean = nn.functional.embedding_bag(
            found.places[counts],
            self.table,
            per_text.cumsum(0) - per_text,
            mode="sum",
            sparse=True,
            per_sample_weights=found.weights[counts] / (1 - share),
        )
        return Outputs((self.head(self.head.dropout(mean)),), (), ())

    def stages(self) -> "list[NgramStage]":
        """The one graph."""
        return [NgramStage(self)]

    def depths(self, *, tokens: int = _REFERENCE_TOKENS) -> tuple[float, ...]:
        """Of the one exit."""
        return (1.0,)


class NgramStage(nn.Module):
    """The bag as one graph: every n-gram's row is looked up, padding weighs nothing."""

    stage_id = "00"
    input_names = ("input_ids", "attention_mask")
    output_names = ("logits",)

    def __init__(self, student: NgramStudent) -> None:
        super().__init__()
        self.config = student.config
        self.table, self.head = student.table, student.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """(float [B, C],) of int64 [B, T]."""
        found = ngrams_of(input_ids, attention_mask, self.config)
        rows = nn.functional.embedding(found.places, self.table)
        return (self.head((found.weights[:, None, :] @ rows)[:, 0]),)

    def multiply_adds(self, tokens: int) -> int:
        """For one text of `tokens` tokens, the adding up of rows included."""
        config = self.config
        return config.orders * tokens * config.rows + self.head.inner.weight.numel() + self.head.logits.weight.numel()
