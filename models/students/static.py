"""The static embedder: the mean of token rows that no context changes, and one linear map to the embedding.

A token's row starts as what the teacher makes of that token alone, less what all tokens have in common, and weighs the
less the more frequent it is. What a text costs is looking its rows up.

Sources: Tulkens & van Dongen 2024 (model2vec), https://github.com/MinishLab/model2vec, for rows from a teacher's pass
over its vocabulary; Arora et al. 2017 (SIF), https://openreview.net/forum?id=SyK00v5xx, algorithm 1, for the weights.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.students.encoder import Outputs
from models.students.initialise import principal_parts

# B items, T tokens, V' vocabulary, E width of a row, D dimensions of the embedding


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """The embedder's shape. `width` is D, `token_width` is E."""

    vocabulary: int
    width: int
    token_width: int
    max_tokens: int


class StaticEmbedder(nn.Module):
    """The embedder as torch trains it; `stages` gives what is exported."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.token_width)
        self.embedding = nn.Linear(config.token_width, config.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """The one exit's embedding, float [B, D], not normalised.

        Args:
            input_ids, attention_mask: int64 [B, T], padded on the right.
        """
        mask = attention_mask.to(torch.float32)
        share = mask / mask.sum(1, keepdim=True).clamp(min=1.0)
        mean = (share[:, None, :] @ self.tokens(input_ids))[:, 0]
        return Outputs((self.embedding(mean),), (), ())

    def stages(self) -> "list[StaticStage]":
        """The one graph."""
        return [StaticStage(self)]


class StaticStage(nn.Module):
    """The embedder as one graph."""

    stage_id = "00"
    input_names = ("input_ids", "attention_mask")
    output_names = ("embedding",)

    def __init__(self, student: StaticEmbedder) -> None:
        super().__init__()
        self.config, self.student = student.config, student

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """(float [B, D],) of int64 [B, T]."""
        outputs: Outputs = self.student(input_ids, attention_mask)
        return outputs.exits


def frequency_weights(counts: npt.NDArray[np.int64], *, smoothing: float) -> Tensor:
    """What each token weighs, float32 [V']: a / (a + p), so scaled that a token of the texts weighs 1 in the mean.

    Args:
        counts: int64 [V'], how often each token is in the texts.
        smoothing: a > 0, a share of the texts' tokens; tokens more frequent than that weigh less than half.

    >>> [round(float(weight), 2) for weight in frequency_weights(np.array([900, 100]), smoothing=0.1)]
    [0.71, 3.57]
    """
    shares = counts / max(1, int(counts.sum()))
    weights = smoothing / (smoothing + shares)
    return torch.from_numpy((weights / max(float((shares * weights).sum()), 1e-30)).astype(np.float32))


def start_static(student: StaticEmbedder, rows: Tensor, weights: Tensor, turned: Tensor) -> None:
    """Let a static embedder give the weighted mean of the teacher's vectors of a text's tokens, in place.

    Args:
        rows: float32 [V', D], unit vectors; their principal parts of width E become the table.
        weights: float32 [V'].
        turned: float32 [D, D], the rotation of the teacher's space.
    """
    principal = principal_parts(rows, student.config.token_width)
    with torch.no_grad():
        student.tokens.weight.copy_(principal.rows * weights[:, None])
        student.embedding.weight.copy_(turned @ principal.axes.T)
        student.embedding.bias.copy_(turned @ principal.mean)
