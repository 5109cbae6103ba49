"""The CNN student: filters over windows of token rows, the largest value of each over the text, logits.

A token has two rows: one that stays the teacher's, one that is trained; a filter has weights of its own for either. A
window begins at every token and reads zeros beyond the end, so that texts shorter than a filter have windows too, and
padding adds none.

Source: Kim 2014, arXiv:1408.5882, sections 2 and 2.1 (CNN-multichannel, or CNN-non-static without the fixed rows).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.students.encoder import Outputs

# B items, T tokens, V vocabulary, E width of a token table, K numbers of a token, N filters of one size, C labels
# L the largest size, F filters in all

_NO_WINDOW = -10_000.0


@dataclass(frozen=True, slots=True)
class CnnConfig:
    """The student's shape. `width` is C, `token_width` is E. `sizes`: tokens that filters see; `filters`: N, of each
    size. `fixed`: tokens have rows that are not trained beside those that are."""

    vocabulary: int
    width: int
    token_width: int
    sizes: tuple[int, ...]
    filters: int
    max_tokens: int
    fixed: bool = True
    dropout: float = 0.0

    @property
    def row(self) -> int:
        """K."""
        return self.token_width * (2 if self.fixed else 1)


class CnnStudent(nn.Module):
    """The student as torch trains it; `stages` gives what is exported. Both compute the same."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.token_width)
        self.register_buffer("fixed", torch.zeros(config.vocabulary, config.token_width) if config.fixed else None)
        self.fixed: Tensor | None
        self.filters = nn.ModuleList(nn.Linear(size * config.row, config.filters) for size in config.sizes)
        self.logits = nn.Linear(len(config.sizes) * config.filters, config.width)
        self.dropout = nn.Dropout(config.dropout)
        for part in (*self.filters, self.logits):
            assert isinstance(part, nn.Linear)
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        self.set_rows(torch.randn(config.vocabulary, config.token_width) * 0.05)

    def set_rows(self, rows: Tensor) -> None:
        """Let both tables start from float32 [V, E]."""
        with torch.no_grad():
            self.tokens.weight.copy_(rows)
            if self.fixed is not None:
                self.fixed.copy_(rows)

    def table(self) -> Tensor:
        """float [V, K]: the rows of each token side by side, the fixed one first."""
        trained = self.tokens.weight
        return trained if self.fixed is None else torch.cat([self.fixed, trained], dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """The one exit's logits.

        Args:
            input_ids, attention_mask: int64 [B, T], padded on the right.
        """
        rows = self.tokens(input_ids)
        if self.fixed is not None:
            rows = torch.cat([nn.functional.embedding(input_ids, self.fixed), rows], dim=-1)
        windows = windows_of(rows, attention_mask, size=max(self.config.sizes))
        parts = zip(self.config.sizes, self.filters, strict=True)
        seen = [filters(windows[:, : size * self.config.row]) for size, filters in parts]
        largest = largest_of(torch.cat(seen, dim=-1), attention_mask)
        return Outputs((self.logits(self.dropout(largest)),), (), ())

    def stages(self) -> "list[CnnStage]":
        """The one graph."""
        return [CnnStage(self)]

    def depths(self) -> tuple[float, ...]:
        """Of the one exit."""
        return (1.0,)


def windows_of(rows: Tensor, attention_mask: Tensor, *, size: int) -> Tensor:
    """float [B*T, L*K], flat: each token's row and the L - 1 after it, zeros beyond the text.

    Args:
        rows: float [B, T, K].
        attention_mask: int64 [B, T].
        size: L.
    """
    inside = rows * attention_mask.to(rows.dtype)[:, :, None]
    padded = nn.functional.pad(inside, (0, 0, 0, size - 1))
    # subtle: bounds counted from the end are constants in the graph, whatever T is
    shifted = [padded[:, at : at - size + 1 or None] for at in range(size)]
    return torch.cat(shifted, dim=-1).reshape(-1, size * rows.shape[-1])


def largest_of(flat: Tensor, attention_mask: Tensor) -> Tensor:
    """float [B, F]: the largest value, or 0, of each filter over the windows that begin at a token.

    Args:
        flat: float [B*T, F].
        attention_mask: int64 [B, T].
    """
    outside = (1 - attention_mask.to(flat.dtype))[:, :, None] * _NO_WINDOW
    return torch.relu((flat.reshape(*attention_mask.shape, flat.shape[-1]) + outside).amax(dim=1))


class CnnStage(nn.Module):
    """The student as one graph: one table, and all filters as one product, short ones with zeros where they end; that
    is faster than several. Its weights are those the student has when this is made."""

    stage_id = "00"
    input_names = ("input_ids", "attention_mask")
    output_names = ("logits",)

    def __init__(self, student: CnnStudent) -> None:
        super().__init__()
        self.config, self.logits = student.config, student.logits
        self.tokens = nn.Embedding(student.config.vocabulary, student.config.row, _weight=student.table().detach())
        self.filters = _joined(student)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """(float [B, C],) of int64 [B, T]."""
        windows = windows_of(self.tokens(input_ids), attention_mask, size=max(self.config.sizes))
        return (self.logits(largest_of(self.filters(windows), attention_mask)),)


def _joined(student: CnnStudent) -> nn.Linear:
    """All filters as one layer on windows of the largest size."""
    config = student.config
    whole = nn.Linear(max(config.sizes) * config.row, len(config.sizes) * config.filters)
    with torch.no_grad():
        whole.weight.zero_()
        for at, part in enumerate(student.filters):
            assert isinstance(part, nn.Linear)
            rows = slice(at * config.filters, (at + 1) * config.filters)
            whole.weight[rows, : part.in_features] = part.weight
            whole.bias[rows] = part.bias
    return whole
