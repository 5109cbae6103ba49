"""The settings of a rank student that compares one vector of the query with one of the passage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.recipe.parts import Count, Less, Part, Tokens
from models.recipe.student import Layers, check_layers


class BiEncoderStudent(Part):
    """Query and passage are read apart by `layers`, each to one vector of int8 numbers; their product is the score.

    `vector_width`: numbers of a vector, a linear map of the mean of a text's last states; `null`: the mean itself, of
    `hidden` numbers. `max_tokens` is of each text. With `teacher-layers` the layers are those of the encoder before it
    is fine-tuned, and `heads` are the largest of its, as wide as there.
    """

    architecture: Literal["bi-encoder"]
    layers: Count = 3
    hidden: Count = 384
    heads: Count = 12
    feed_forward: Count = 384
    activation: Literal["relu", "gelu"] = "gelu"
    token_width: Count | None = None
    vector_width: Annotated[int, Field(ge=1, le=1024)] | None = None
    embeddings: Literal["teacher-pca", "teacher", "random"] = "teacher"
    initialise: Literal["random", "teacher-layers"] = "teacher-layers"
    teacher_layers: Layers = (0, 2, 5)
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 256
    dropout: Less = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_layers(self)
        if self.vector_width is not None and self.vector_width > self.hidden:
            raise ValueError("vector_width must not exceed hidden")
        if self.initialise == "random" and self.hidden % self.heads:
            raise ValueError("hidden must be a multiple of heads")
        return self
