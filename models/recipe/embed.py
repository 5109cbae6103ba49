"""The recipe of an embed student."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from models.recipe.parts import Count, Cut, Less, Part, Positive, Recipe, Share, Texts, Tokens, one_set
from models.recipe.student import Layers, check_layers, tagged


class Neighbours(Part):
    """Labelled texts on which a nearest-neighbour classifier is compared with the teacher's: `fit` on, `test` on."""

    fit: str
    test: str


class EmbedData(Part):
    """Texts to learn from, and pairs with scores to judge by.

    `joined`: rows made of two to `join_at_most` neighbouring texts of one source, as a share of the texts, so that
    long inputs are learned too. `gate` is cut from the texts.
    """

    texts: Annotated[tuple[Texts, ...], Field(min_length=1)]
    dev: str
    test: str
    gate: Cut = Cut(cut=0.005)
    joined: Share = 0.0
    join_at_most: Annotated[int, Field(ge=2, le=64)] = 6
    neighbours: Neighbours | None = None
    licence: str = "not stated"


class EmbedStudent(Part):
    """The shape of an embedder: an encoder with one exit, mean pooling and a linear map to `dimensions`.

    `attention_width`: of all heads of a layer together, where it is not `hidden`. `token_width`: of the token table,
    where it is not `hidden` (then projected).
    """

    architecture: Literal["encoder"] = "encoder"
    layers: Count = 2
    hidden: Count = 384
    heads: Count = 12
    attention_width: Count | None = None
    feed_forward: Count = 384
    activation: Literal["relu", "gelu"] = "gelu"
    token_width: Count | None = None
    embeddings: Literal["teacher-pca", "teacher"] = "teacher"
    initialise: Literal["random", "teacher-layers"] = "teacher-layers"
    teacher_layers: Layers = ()
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 128
    dropout: Less = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.attention_width or self.hidden) % self.heads:
            raise ValueError("attention_width (or hidden) must be a multiple of heads")
        check_layers(self)
        return self


class StaticSettings(Part):
    """The mean of token rows, which start as the teacher's vectors of the tokens alone, and one linear map.

    `token_width`: of a row. `smoothing`: the share of the texts' tokens at which a token weighs half. `distilled`:
    whether the rows are trained, or stay what they start as.
    """

    architecture: Literal["static"]
    token_width: Count = 256
    smoothing: Positive = 1e-3
    distilled: bool = True
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 128


AnyStudent = Annotated[
    Annotated[EmbedStudent, Tag("<encoder>")] | Annotated[StaticSettings, Tag("<static>")],
    Discriminator(
        tagged("encoder"),
        custom_error_type="architecture",
        custom_error_message="architecture must be one of encoder, static",
    ),
]
"""An embed student's shape, of any architecture."""


class Cosine(Part):
    """1 - cosine to the teacher's embedding."""

    weight: Positive = 1.0


class Similarities(Part):
    """KL of each text's softened similarities to the others of its batch."""

    weight: Positive = 1.0
    temperature: Positive = 0.05


class EmbedObjective(Part):
    """One term of the loss; exactly one key is set."""

    cosine: Cosine | None = None
    similarities: Similarities | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        one_set(self)
        return self


class Prefix(Part):
    """The first `dimensions` numbers of an embedding, and what they weigh in the loss."""

    dimensions: Count
    weight: Positive = 1.0


class EmbedDistil(Part):
    """How an embed student is trained. Every objective is taken of every prefix.

    `rotate`: turn the teacher's space first, so that its principal directions come in the order of the prefixes and
    are evenly mixed inside each; cosines stay what they were.
    """

    objectives: Annotated[tuple[EmbedObjective, ...], Field(min_length=1)]
    prefixes: tuple[Prefix, ...] = ()
    rotate: bool = True
    epochs: Positive = 2
    batch_items: Annotated[int, Field(ge=2)] = 128
    learning_rate: Positive = 5e-4
    embedding_learning_rate_factor: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up: Share = 0.06
    average: Literal["none", "swa", "ema"] = "ema"

    @model_validator(mode="after")
    def _each_prefix_once(self) -> Self:
        if len({prefix.dimensions for prefix in self.prefixes}) < len(self.prefixes):
            raise ValueError("prefixes must name each length once")
        return self


class EmbedGates(Part):
    """What must hold before an embedder is published: on texts nobody trained on, and of the dev pairs.

    `cosine`: mean to the teacher's. `overlap`: mean share of a text's ten nearest neighbours that are the teacher's.
    `retention`: of the teacher's Spearman correlation on dev.
    """

    cosine: Share = 0.9
    overlap: Share = 0.5
    retention: Share = 0.95
    bytes: Count = 12_000_000


class EmbedRecipe(Recipe):
    """Texts to vectors."""

    task: Literal["embed"]
    data: EmbedData
    student: AnyStudent = EmbedStudent(teacher_layers=(0, 4))
    distil: EmbedDistil
    gates: EmbedGates = EmbedGates()

    @model_validator(mode="after")
    def _teacher_stays(self) -> Self:
        if self.teacher.fine_tune is not None:
            raise ValueError("teacher.fine_tune: an embed student learns from the teacher as it is")
        if self.int8 is not None and self.int8.int8 == "qat":
            raise ValueError("compress: qat is for classify students")
        if self.trim is not None and self.student.architecture == "static":
            raise ValueError("compress: a static student is trimmed before training; see student.vocabulary_min_count")
        return self

    def files(self) -> Mapping[str, str]:
        """The files of `data` by their key in it."""
        data = self.data
        named = {f"texts.{i}": each.file for i, each in enumerate(data.texts)} | {"dev": data.dev, "test": data.test}
        if data.neighbours is None:
            return named
        return named | {"neighbours.fit": data.neighbours.fit, "neighbours.test": data.neighbours.test}
