"""The student's shape, one model an architecture; `architecture` says which, and an encoder is meant where it is not
written."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Discriminator, Field, Tag, model_validator

from models.recipe.over_tokens import BilstmSettings, CnnSettings
from models.recipe.parts import Count, GrownPart, Less, Part, Positive, Tokens

Layers = tuple[Annotated[int, Field(ge=0)], ...]
"""Numbers of a teacher's layers, the first being 0."""


class FromTeacher(Protocol):
    """What of a student's settings says which layers of the teacher it starts from."""

    @property
    def layers(self) -> int:
        """How many the student has."""
        ...

    @property
    def initialise(self) -> str:
        """`teacher-layers`, or `random`."""
        ...

    @property
    def teacher_layers(self) -> Layers:
        """One for each of the student's."""
        ...

    @property
    def embeddings(self) -> str:
        """What the token table starts from."""
        ...


def check_layers(settings: FromTeacher) -> None:
    """Raises: ValueError: layers of the teacher are to be copied, and which ones or into what does not fit."""
    if settings.initialise != "teacher-layers":
        return
    if len(settings.teacher_layers) != settings.layers:
        raise ValueError("teacher_layers must name one teacher layer for each of the layers")
    if settings.embeddings == "teacher-pca":
        raise ValueError("embeddings: layers of the teacher need its embeddings: teacher, not teacher-pca")


class EncoderSettings(GrownPart):
    """A transformer encoder. `exits` are layer numbers: 0 is after the embeddings; the last must be `layers`.

    `token_width`: width of the token table where it is not `hidden` (then projected). `local_features`: channels of
    a convolution over three tokens that the exit at 0 sees too; 0 for none. `head_width`: of each exit's inner layer.
    `attention_width`: of all heads of a layer together, where it is not `hidden`.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"attention_width"})

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
    teacher_layers: Layers = ()
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 64
    dropout: Less = 0.1
    attention_width: Count | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.attention_width is None and self.hidden % self.heads:
            raise ValueError("hidden must be a multiple of heads")
        if self.attention_width is not None and self.attention_width % self.heads:
            raise ValueError("attention_width must be a multiple of heads")
        if list(self.exits) != sorted(set(self.exits)) or self.exits[-1] != self.layers:
            raise ValueError("exits must rise and end at layers")
        check_layers(self)
        return self


class SiameseSettings(Part):
    """A transformer encoder that reads each text of a pair alone, to one vector, and a head that joins two: one exit.

    `vector_width`: numbers of a vector, a linear map of the mean and the largest of the text's last states; `null`:
    they are the vector themselves. `head_width`: of the head's inner layer. `max_tokens`: of each text.
    """

    architecture: Literal["siamese"]
    layers: Count = 4
    hidden: Count = 128
    heads: Count = 2
    feed_forward: Count = 512
    activation: Literal["relu", "gelu"] = "gelu"
    token_width: Count | None = None
    attention_width: Count | None = None
    vector_width: Count | None = None
    head_width: Count = 256
    embeddings: Literal["teacher-pca", "teacher", "random"] = "teacher-pca"
    initialise: Literal["random", "teacher-layers"] = "random"
    teacher_layers: Layers = ()
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 64
    dropout: Less = 0.1

    @property
    def exits(self) -> tuple[int, ...]:
        """Attention layers run up to each exit."""
        return (self.layers,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.attention_width or self.hidden) % self.heads:
            raise ValueError(f"{'attention_width' if self.attention_width else 'hidden'} must be a multiple of heads")
        check_layers(self)
        return self


class NgramShape(Part):
    """A bag of n-grams of word pieces: their rows averaged order by order, then one inner layer.

    `orders`: the longest n-gram. Word pieces have rows of their own, longer n-grams share `buckets` rows by a hash;
    `buckets` is raised to the next prime. `width`: of a row. `hidden`: of the inner layer. `feature_dropout`: share of
    the n-grams of a text that a training step leaves out. `embeddings`: what the word pieces' rows start from; those
    of longer n-grams start at zero. `table_learning_rate_factor`: of the rows, over `distil.learning_rate`.
    """

    orders: Annotated[int, Field(ge=1, le=4)] = 3
    buckets: Annotated[int, Field(ge=16, le=1 << 22)] = 65_536
    width: Count = 64
    hidden: Count = 256
    dropout: Less = 0.2
    feature_dropout: Less = 0.1
    embeddings: Literal["teacher-pca", "random"] = "teacher-pca"
    table_learning_rate_factor: Positive = 5.0


class NgramSettings(NgramShape):
    """A bag of n-grams as the whole student: one exit."""

    architecture: Literal["ngram"]
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 64

    @property
    def exits(self) -> tuple[int, ...]:
        """Attention layers run up to each exit."""
        return (0,)


class CascadeSettings(Part):
    """A bag of n-grams as the first exit, before an encoder with exits of its own; one pipeline, certified as one.

    Both read the same tokens: `encoder` says which vocabulary and how many.
    """

    architecture: Literal["cascade"]
    ngram: NgramShape = NgramShape()
    encoder: EncoderSettings = EncoderSettings()

    @property
    def exits(self) -> tuple[int, ...]:
        """Attention layers run up to each exit."""
        return (0, *self.encoder.exits)

    @property
    def vocabulary(self) -> Literal["trimmed", "full"]:
        """As for an encoder."""
        return self.encoder.vocabulary

    @property
    def vocabulary_min_count(self) -> int:
        """As for an encoder."""
        return self.encoder.vocabulary_min_count

    @property
    def max_tokens(self) -> int:
        """As for an encoder."""
        return self.encoder.max_tokens


def tagged(default: str) -> Callable[[Any], str]:
    """What tells a shape's model by its `architecture`, `default` where it is not written."""

    def architecture(value: Any) -> str:
        # subtle: the tags stand in the places of errors, where names in <> are left out
        found = value.get("architecture", default) if isinstance(value, dict) else getattr(value, "architecture", "")
        return f"<{found}>"

    return architecture


Student = Annotated[
    Annotated[EncoderSettings, Tag("<encoder>")]
    | Annotated[NgramSettings, Tag("<ngram>")]
    | Annotated[CascadeSettings, Tag("<cascade>")]
    | Annotated[BilstmSettings, Tag("<bilstm>")]
    | Annotated[CnnSettings, Tag("<cnn>")]
    | Annotated[SiameseSettings, Tag("<siamese>")],
    Discriminator(
        tagged("encoder"),
        custom_error_type="architecture",
        custom_error_message="architecture must be one of encoder, ngram, cascade, bilstm, cnn, siamese",
    ),
]
"""A classify student's shape, of any architecture."""
