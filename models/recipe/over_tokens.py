"""The shapes of students that read token rows with neither attention nor early exits: an LSTM, and filters."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.recipe.parts import Count, Less, Part, Tokens


class OverTokens(Part):
    """What they have in common: a table of token rows, and one exit.

    `token_width`: of a row. `embeddings`: what the rows start from.
    """

    token_width: Count = 128
    embeddings: Literal["teacher-pca", "random"] = "teacher-pca"
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 64

    @property
    def exits(self) -> tuple[int, ...]:
        """Attention layers run up to each exit."""
        return (0,)


class BilstmSettings(OverTokens):
    """One LSTM in either direction over the token rows, pooled over the tokens, then one inner layer.

    `width`: states of a direction. `pooling`: what the inner layer sees of all states. `head_width`: of that layer.
    """

    architecture: Literal["bilstm"]
    width: Count = 150
    pooling: Literal["max", "mean", "both"] = "max"
    head_width: Count = 200
    dropout: Less = 0.1


class CnnSettings(OverTokens):
    """Filters over windows of token rows, the largest value of each over the text, logits.

    `sizes`: how many tokens filters see. `filters`: how many of each size. `channels`: `both` has a row of each token
    that stays the teacher's beside the one that is trained.
    """

    architecture: Literal["cnn"]
    sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)] = (3, 4, 5)
    filters: Count = 100
    channels: Literal["both", "trained"] = "both"
    dropout: Less = 0.5

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("sizes must rise, each once")
        if self.channels == "both" and self.embeddings == "random":
            raise ValueError("channels: both keeps rows of the teacher's, and embeddings random has none of them")
        return self
