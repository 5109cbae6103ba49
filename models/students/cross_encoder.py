"""The cross-encoder student: the encoder's layers over query and passage as one sequence, token types, one score.

Cut and exported as one stage that reads `token_type_ids` too; what it computes is spelled as in `encoder.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.errors import RecipeInvalid
from models.recipe.rank import RankStudent
from models.students.encoder import EncoderConfig, EncoderStudent, mask_bias
from models.students.initialise import from_teacher_embeddings, from_teacher_layers
from models.students.vocabulary import Trimmed

# B items, T tokens, H hidden

_TYPES = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True, slots=True)
class CrossEncoderConfig:
    """The student's shape; as `EncoderConfig`, with one exit that writes one number."""

    vocabulary: int
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    max_tokens: int
    token_width: int | None = None
    head_width: int = 128
    activation: str = "gelu"
    dropout: float = 0.0

    def encoder(self) -> EncoderConfig:
        """The shape of the encoder inside."""
        return EncoderConfig(
            vocabulary=self.vocabulary,
            width=1,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            feed_forward=self.feed_forward,
            exits=(self.layers,),
            max_tokens=self.max_tokens,
            token_width=self.token_width,
            head_width=self.head_width,
            activation="relu" if self.activation == "relu" else "gelu",
            dropout=self.dropout,
        )


class CrossEncoder(nn.Module):
    """An encoder with one exit, and what the second text's tokens carry besides.

    `second` float [H] is the row of token type 1 less that of type 0, which is folded into the positions.
    """

    def __init__(self, config: CrossEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderStudent(config.encoder())
        self.second = nn.Parameter(torch.randn(config.hidden) * 0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """float [B], raw scores.

        Args:
            input_ids: int64 [B, T], T at most `max_tokens`.
            attention_mask: int64 [B, T], 1 on tokens, 0 on padding.
            token_type_ids: int64 [B, T], 1 on the passage's tokens.
        """
        embeddings, bias = self.encoder.embeddings, mask_bias(attention_mask)
        rows = embeddings.tokens(input_ids)
        if embeddings.projection is not None:
            rows = embeddings.projection(rows)
        second = token_type_ids[:, :, None].to(self.second.dtype) * self.second
        states = embeddings.norm(rows + embeddings.positions[: input_ids.shape[1]] + second)
        flat = embeddings.dropout(states).reshape(-1, self.config.hidden)
        for layer in self.encoder.layers:
            flat, _ = layer(flat, bias)
        score: Tensor = self.encoder.exit_head(0)(flat, attention_mask)[:, 0]
        return score

    def stages(self) -> "list[ScoreStage]":
        """The student as its one stage; parameters are shared with it."""
        return [ScoreStage(self)]

    def multiply_adds(self, tokens: int) -> int:
        """Multiply-adds for one pair of `tokens` tokens; look-ups and norms count as none."""
        return sum(stage.multiply_adds(tokens) for stage in self.encoder.stages())


class ScoreStage(nn.Module):
    """From token inputs to the score: what is exported as one graph."""

    stage_id = "00"
    input_names = ("input_ids", "attention_mask", "token_type_ids")
    output_names = ("score",)

    def __init__(self, student: CrossEncoder) -> None:
        super().__init__()
        self.student = student

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor]:
        """(score float32 [B],) of int64 [B, T] each."""
        return (self.student(input_ids, attention_mask, token_type_ids),)


def new_cross_encoder(
    settings: RankStudent, *, trimmed: Trimmed, state: Mapping[str, Tensor], teacher_heads: int, seed: int
) -> CrossEncoder:
    """Make and initialise a student.

    Args:
        settings: the recipe's `student`.
        trimmed: its vocabulary.
        state: the teacher encoder's weights by their Hugging Face names (`Teacher.encoder_state`).
        teacher_heads: attention heads of each of the teacher's layers.
        seed: decides every random weight.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from.
    """
    torch.manual_seed(seed)
    student = CrossEncoder(
        CrossEncoderConfig(
            vocabulary=len(trimmed.kept_ids),
            layers=settings.layers,
            hidden=settings.hidden,
            heads=settings.heads,
            feed_forward=settings.feed_forward,
            max_tokens=settings.max_tokens,
            token_width=settings.token_width,
            head_width=settings.head_width,
            activation=settings.activation,
            dropout=settings.dropout,
        )
    )
    if settings.embeddings != "random":
        from_teacher_embeddings(student.encoder, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    if settings.embeddings == "teacher" and _TYPES in state and len(state[_TYPES]) > 1:
        with torch.no_grad():
            student.second.copy_(state[_TYPES][1] - state[_TYPES][0])
    if settings.initialise == "teacher-layers":
        if settings.heads != teacher_heads:
            raise RecipeInvalid(f"student.heads: {settings.heads}, the teacher's layers have {teacher_heads}")
        from_teacher_layers(student.encoder, state, settings.teacher_layers)
    return student
