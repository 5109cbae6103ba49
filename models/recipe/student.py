"""The student's shape."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.recipe.parts import Count, Part, Share


class Student(Part):
    """The student's shape. `exits` are layer numbers: 0 is after the embeddings; the last must be `layers`.

    `token_width`: width of the token table where it is not `hidden` (then projected). `local_features`: channels of
    a convolution over three tokens that the exit at 0 sees too; 0 for none. `head_width`: of each exit's inner layer.
    """

    architecture: Literal["encoder"] = "encoder"
    layers: Count = 4
    hidden: Count = 128
    heads: Count = 2
    feed_forward: Count = 512
    activation: Literal["relu", "gelu"] = "gelu"
    token_width: Count | None = None
    local_features: Annotated[int, Field(ge=0)] = 0
    head_width: Count = 256
    exits: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 2, 4)
    embeddings: Literal["teacher-pca", "teacher", "random"] = "teacher-pca"
    initialise: Literal["random", "teacher-layers"] = "random"
    teacher_layers: tuple[int, ...] = ()
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 64
    dropout: Share = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError("hidden must be a multiple of heads")
        if list(self.exits) != sorted(set(self.exits)) or self.exits[-1] != self.layers:
            raise ValueError("exits must rise and end at layers")
        if self.initialise == "teacher-layers" and len(self.teacher_layers) != self.layers:
            raise ValueError("teacher_layers must name one teacher layer for each of the layers")
        return self
