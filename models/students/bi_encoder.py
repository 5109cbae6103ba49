"""The bi-encoder: one encoder reads query and passage apart, each to one vector; their product, scaled, is the score.

    ids ── encoder ── mean ── unit vector, int8 ┐
                                                ├─ product, scaled ── score
    ids ── encoder ── mean ── unit vector, int8 ┘

Both texts take the same encoder; token types tell one from the other. Nothing of a passage is needed but its vector,
whose numbers are int8 in training as in service, and what is done for a pair costs nothing to speak of.

Sources: Reimers & Gurevych 2019 (Sentence-BERT), arXiv:1908.10084, section 3, for the encoder shared by both texts and
the mean of its states; Radford et al. 2021 (CLIP), arXiv:2103.00020, section 2.3, for a scale that is learned by its
logarithm; van den Oord et al. 2017, arXiv:1711.00937, section 3.2, for the gradient past the rounding.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.students.encoder import EncoderConfig, EncoderStudent, mask_bias
from models.students.split_ranker import LEVELS
from models.teachers.fit import fast_matmul
from models.teachers.tokens import Padded

# B pairs, N texts, L tokens of the longest text, H hidden, D width of a vector

SPREADS = 6.0
"""The largest number of a vector that is stored, in root mean squares of a unit vector's: hardly any is larger."""

FIRST_SCALE = 20.0
"""What cosines are multiplied with at first: sentence encoders are trained with it."""

_NO_LENGTH = 1e-12


@dataclass(frozen=True, slots=True)
class BiEncoderConfig:
    """The shape. `encoder`: reads one text, without exits; `max_tokens` is of each text.

    `vector_width` is D where the mean of the states is mapped to it; None: the mean itself, H.
    """

    encoder: EncoderConfig
    vector_width: int | None = None

    @property
    def vector(self) -> int:
        """D."""
        return self.vector_width or self.encoder.hidden

    @property
    def fits(self) -> float:
        """What a unit vector's numbers are multiplied with, so that those of `SPREADS` root mean squares become 1."""
        return math.sqrt(self.vector) / SPREADS


class BiEncoder(nn.Module):
    """The whole student. `stages` cuts it between the texts apart and joined; cut or whole, it computes the same.

    `level` is added to every score; no list's loss depends on it, and it is set when training is done.
    """

    level: Tensor

    def __init__(self, config: BiEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderStudent(config.encoder)
        width = config.vector_width
        self.projection = None if width is None else nn.Linear(config.encoder.hidden, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.register_buffer("level", torch.tensor(0.0))
        if self.projection is not None:
            nn.init.xavier_uniform_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def pooled(self, text: Padded) -> Tensor:
        """float32 [N, H], the mean of each text's last states; queries have types of 0, passages of 1, int64 [N, L]."""
        flat: Tensor = self.encoder.embeddings(text.input_ids, text.token_type_ids)
        bias = mask_bias(text.attention_mask)
        for layer in self.encoder.layers:
            flat, _ = layer(flat, bias)
        # subtle: vectors of texts that say the same differ by less than bfloat16 tells apart
        with fast_matmul(False):
            return _mean(flat.float(), text.attention_mask)

    def units(self, pooled: Tensor) -> Tensor:
        """float32 [N, D], of length 1, of what `pooled` gives."""
        mapped = pooled if self.projection is None else self.projection(pooled)
        squares: Tensor = (mapped * mapped).sum(-1, keepdim=True)
        return mapped / torch.sqrt(squares + _NO_LENGTH)

    def states(self, text: Padded) -> Tensor:
        """float32 [N, D], whole multiples of 1/127 in [-1, 1]; gradients flow as if nothing were rounded."""
        pooled = self.pooled(text)
        with fast_matmul(False):
            smooth = (self.units(pooled) * self.config.fits).clamp(-1, 1)
        return smooth + (torch.round(smooth * LEVELS) / LEVELS - smooth).detach()

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """float32 [B], raw scores of pairs of what `states` gives, float32 [B, D] each."""
        cosines = (first * second).sum(-1) / self.config.fits**2
        return self.log_scale.exp() * cosines + self.level

    def forward(self, query: Padded, passage: Padded) -> Tensor:
        """float32 [B], raw scores of B queries and as many passages."""
        return self.join(self.states(query), self.states(passage))

    def stages(self) -> tuple["ReadStage", "ProductStage"]:
        """What is exported: the part that reads one text, and the part that joins two; parameters are shared."""
        return ReadStage(self), ProductStage(self)


def _mean(flat: Tensor, attention_mask: Tensor) -> Tensor:
    """float [N, H], the mean over the tokens of float [N*L, H] with the mask int64 [N, L]."""
    mask = attention_mask.to(flat.dtype)
    hidden = flat.reshape(mask.shape[0], mask.shape[1], -1)
    return ((mask / mask.sum(1, keepdim=True))[:, None, :] @ hidden)[:, 0]


class ReadStage(nn.Module):
    """One text to its vector, int8: what is exported as the first graph, and what may be kept."""

    stage_id = "00"
    scope: Literal["item"] = "item"
    cacheable = True
    input_names = ("input_ids", "attention_mask", "token_type_ids")
    output_names = ("vector",)

    def __init__(self, student: BiEncoder) -> None:
        super().__init__()
        self.student, self.config = student, student.config.encoder
        self.levels = student.config.fits * LEVELS

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor]:
        """(int8 [N, D],) of int64 [N, L]."""
        units = self.student.units(self.student.pooled(Padded(input_ids, attention_mask, token_type_ids)))
        return (torch.round((units * self.levels).clamp(-LEVELS, LEVELS)).to(torch.int8),)


class ProductStage(nn.Module):
    """Two texts' vectors to a score: what is exported as the second graph; scale and levels are one factor in it."""

    stage_id = "01"
    scope: Literal["pair"] = "pair"
    cacheable = False
    input_names = ("first", "second")
    output_names = ("score",)
    factor: Tensor
    level: Tensor

    def __init__(self, student: BiEncoder) -> None:
        super().__init__()
        self.vector_width, self.vector_dtype = student.config.vector, torch.int8
        self.sources = {side: f"{side}:{ReadStage.stage_id}.{ReadStage.output_names[0]}" for side in self.input_names}
        with torch.no_grad():
            self.register_buffer("factor", student.log_scale.exp() / (student.config.fits * LEVELS) ** 2)
            self.register_buffer("level", student.level.clone())

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor]:
        """(float32 [B],) of int8 [B, D] each."""
        products = first.to(torch.float32) * second.to(torch.float32)
        return (products.sum(-1) * self.factor + self.level,)
