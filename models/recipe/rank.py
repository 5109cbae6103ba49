"""The recipe of a rank student."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from models.recipe.bi_encoder import BiEncoderStudent
from models.recipe.dark_examples import DarkExamples, SelfPaced
from models.recipe.parts import (
    Count,
    Cut,
    FineTune,
    GrownPart,
    Less,
    Part,
    Positive,
    Recipe,
    Seed,
    Share,
    Teacher,
    Tokens,
    one_set,
)
from models.recipe.student import Layers, check_layers, tagged
from service.bundle.manifest import Name


class Queries(Part):
    """Queries over a set's corpus: `queries` JSONL, `qrels` and `candidates` tab-separated, with a header or without.

    `candidates` are a query's passages in the order of a first stage; without them they are the best of a BM25.
    """

    queries: str
    qrels: str
    candidates: str | None = None

    def files(self) -> Iterator[tuple[str, str]]:
        """The files by their key."""
        yield from (("queries", self.queries), ("qrels", self.qrels))
        if self.candidates is not None:
            yield "candidates", self.candidates


def _list_or_corpus(value: Any) -> str:
    # subtle: the tags stand in the places of errors, where names in <> are left out
    return "<corpus>" if isinstance(value, dict | Queries) else "<list>"


Source = Annotated[Annotated[str, Tag("<list>")] | Annotated[Queries, Tag("<corpus>")], Discriminator(_list_or_corpus)]
"""A file of queries with their passages, or queries over the set's corpus."""


class RankSet(Part):
    """One data set. `tests` are named, and each is measured by itself.

    `title`: whether a document's title is put before its text; BM25 sees it in either case. `depth`: candidates a
    query where BM25 makes them.
    """

    name: Name
    corpus: str | None = None
    train: Source | None = None
    dev: Source | None = None
    tests: dict[Name, Source] = Field(default={})
    title: Literal["drop", "join"] = "drop"
    depth: Annotated[int, Field(ge=2, le=1000)] = 20
    licence: str = "not stated"

    @model_validator(mode="after")
    def _has_what_it_names(self) -> Self:
        named = [source for source in (self.train, self.dev, *self.tests.values()) if source is not None]
        if not named:
            raise ValueError(f"set {self.name} names no queries: give it train, dev or tests")
        corpus_form = any(isinstance(source, Queries) for source in named)
        if corpus_form and self.corpus is None:
            raise ValueError(f"set {self.name} has queries over a corpus, and names no corpus")
        if not corpus_form and self.corpus is not None:
            raise ValueError(f"set {self.name} names a corpus that nothing is asked of")
        return self

    def sources(self) -> Iterator[tuple[str, Source]]:
        """What it names, by its key."""
        if self.train is not None:
            yield "train", self.train
        if self.dev is not None:
            yield "dev", self.dev
        for name, source in self.tests.items():
            yield f"tests.{name}", source

    def files(self) -> Iterator[tuple[str, str]]:
        """The files by their key in the set."""
        if self.corpus is not None:
            yield "corpus", self.corpus
        for key, source in self.sources():
            if isinstance(source, str):
                yield key, source
            else:
                yield from ((f"{key}.{inner}", file) for inner, file in source.files())


class RankData(Part):
    """The sets, and which share of the training queries is held out; `dev` is cut from sets that have none."""

    sets: Annotated[tuple[RankSet, ...], Field(min_length=1)]
    dev: Cut = Cut(cut=0.05)
    calibration: Cut = Cut(cut=0.02)
    gate: Cut
    allowed_overlap: Share = 0.01
    population: str = ""

    @model_validator(mode="after")
    def _can_be_learned_and_judged(self) -> Self:
        names = [each.name for each in self.sets]
        tests = [name for each in self.sets for name in each.tests]
        if len(set(names)) < len(names) or len(set(tests)) < len(tests):
            raise ValueError("sets: two sets, or two tests, have one name")
        if all(each.train is None for each in self.sets):
            raise ValueError("sets: none has a train")
        if not tests:
            raise ValueError("sets: none has tests")
        if self.dev.cut + self.calibration.cut > 0.5:
            raise ValueError("dev.cut and calibration.cut must not exceed 0.5 together")
        return self


class Negatives(Part):
    """What stands beside the relevant passages in a training list, for each query.

    `hard`: drawn from the first `among` of its candidates that are not relevant. `random`: from all of the set.
    """

    hard: Annotated[int, Field(ge=0)] = 3
    among: Count = 10
    random: Annotated[int, Field(ge=0)] = 1

    @model_validator(mode="after")
    def _are_some(self) -> Self:
        if self.hard + self.random < 1:
            raise ValueError("hard and random must not both be 0")
        return self


class RankFineTune(FineTune):
    """How a cross-encoder is made of the teacher's encoder.

    A batch is of `batch_items` lists. `loss`: `listwise` is the cross-entropy of each list's softmax with its relevant
    passages; `binary` that of each pair by itself, which fixes what a score means; `both` is their mean. Of a list
    with more relevant passages than `positives`, that many are taken. `dev_queries`: looked at after each epoch.
    """

    epochs: Positive = 2
    learning_rate: Positive = 5e-5
    batch_items: Count = 8
    max_tokens: Tokens = 256
    head: Literal["random"] = "random"
    average: Literal["none", "ema"] = "ema"
    loss: Literal["listwise", "binary", "both"] = "both"
    negatives: Negatives = Negatives()
    positives: Count = 2
    dev_queries: Count = 100

    @model_validator(mode="after")
    def _has_no_classes(self) -> Self:
        if self.label_smoothing:
            raise ValueError("label_smoothing is for teachers that classify")
        return self


class RankTeacher(Teacher):
    """`from`: an encoder to fine-tune; or a finished cross-encoder of one label, without `fine_tune`.

    `max_tokens`: of a pair, where there is no `fine_tune`.
    """

    fine_tune: RankFineTune | None = None
    max_tokens: Tokens = 256


class RankStudent(Part):
    """A small cross-encoder: query and passage as one sequence, token types, one score.

    `token_width`: width of the token table where it is not `hidden` (then projected). `head_width`: of the inner layer
    of the head.
    """

    architecture: Literal["cross-encoder"] = "cross-encoder"
    layers: Count = 2
    hidden: Count = 384
    heads: Count = 12
    feed_forward: Count = 768
    activation: Literal["relu", "gelu"] = "gelu"
    token_width: Count | None = None
    head_width: Count = 128
    embeddings: Literal["teacher-pca", "teacher", "random"] = "teacher"
    initialise: Literal["random", "teacher-layers"] = "teacher-layers"
    teacher_layers: Layers = (0, 3)
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 256
    dropout: Less = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError("hidden must be a multiple of heads")
        check_layers(self)
        return self


class SplitRankerStudent(Part):
    """Query and passage are read apart by `layers`, compressed to `state_width` int8 numbers a token, and joined by
    `joined_layers`, which update the query's tokens alone. `max_tokens` is of each text.

    With `teacher-layers`, `heads` and `joined_heads` are the largest of the teacher's, as wide as there.
    """

    architecture: Literal["split-ranker"]
    layers: Count = 3
    hidden: Count = 384
    heads: Count = 6
    feed_forward: Count = 384
    activation: Literal["relu", "gelu"] = "gelu"
    token_width: Count | None = None
    state_width: Annotated[int, Field(ge=1, le=1024)] = 96
    joined_layers: Count = 2
    joined_heads: Count = 12
    joined_feed_forward: Count = 768
    head_width: Count = 128
    embeddings: Literal["teacher-pca", "teacher", "random"] = "teacher"
    initialise: Literal["random", "teacher-layers"] = "teacher-layers"
    teacher_layers: Layers = (0, 1, 3)
    joined_teacher_layers: Layers = (4, 5)
    vocabulary: Literal["trimmed", "full"] = "trimmed"
    vocabulary_min_count: Count = 1
    max_tokens: Tokens = 256
    dropout: Less = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_layers(self)
        if self.initialise == "teacher-layers":
            if len(self.joined_teacher_layers) != self.joined_layers:
                raise ValueError("joined_teacher_layers must name one teacher layer for each of the joined_layers")
            return self
        if self.hidden % self.heads or self.hidden % self.joined_heads:
            raise ValueError("hidden must be a multiple of heads and of joined_heads")
        return self


RankShape = Annotated[
    Annotated[RankStudent, Tag("<cross-encoder>")]
    | Annotated[SplitRankerStudent, Tag("<split-ranker>")]
    | Annotated[BiEncoderStudent, Tag("<bi-encoder>")],
    Discriminator(
        tagged("cross-encoder"),
        custom_error_type="architecture",
        custom_error_message="architecture must be one of cross-encoder, split-ranker, bi-encoder",
    ),
]
"""A rank student's shape, of any architecture."""


class MarginMse(Part):
    """Squared difference of the margins between a list's best passage and its others."""

    weight: Positive = 1.0


class ListwiseKl(Part):
    """KL of each list's softened scores, times temperature squared."""

    weight: Positive = 1.0
    temperature: Positive = 1.0


class RankObjective(Part):
    """One term of the loss; exactly one key is set."""

    margin_mse: MarginMse | None = None
    listwise_kl: ListwiseKl | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        one_set(self)
        return self


class StatesDistil(Part):
    """How what a student gives of a text alone is first made like the teacher's, text by text: a split ranker's states
    like those of the teacher's lower layers, a bi-encoder's vectors like those of the encoder it starts from."""

    epochs: Positive = 3
    batch_texts: Count = 32
    learning_rate: Positive = 1e-3
    warm_up: Share = 0.06


class RankDistil(GrownPart):
    """How the student is trained on the teacher's scores of lists.

    `gold_weight`: share of the loss that is the cross-entropy with the relevant passages. `unanswered`: whether
    queries of train without a relevant passage are learned from too; the teacher scores theirs like any other's.
    `states`: what comes before, of a split ranker or a bi-encoder that starts from the teacher's layers.
    `dark_examples`: passages made for the teacher to score. `self_paced`: which lists count first.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"dark_examples", "self_paced"})

    states: StatesDistil | None = None

    objectives: Annotated[tuple[RankObjective, ...], Field(min_length=1)]
    gold_weight: Share = 0.1
    negatives: Negatives = Negatives(hard=7, random=2)
    dark_examples: DarkExamples | None = None
    positives: Count = 2
    unanswered: bool = True
    epochs: Positive = 4
    batch_lists: Count = 8
    learning_rate: Positive = 2e-4
    embedding_learning_rate_factor: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up: Share = 0.06
    average: Literal["none", "swa", "ema"] = "ema"
    self_paced: SelfPaced | None = None
    seed: Seed = 0


class RankGates(Part):
    """What must hold on the gate split before a ranker is published.

    `retention`: of the teacher's nDCG@10 and of its mean average precision, each. `beats`: baselines whose nDCG@10 it
    must be above: `given` is the order of the candidates, `bm25` a BM25 over the same passages, `bi-encoder` the
    cosine of the teacher's encoder before it was fine-tuned.
    """

    retention: Share = 0.95
    beats: tuple[Literal["given", "bm25", "bi-encoder"], ...] = ("bm25",)
    bytes: Count = 12_000_000


class RankRecipe(Recipe):
    """Queries and passages to scores."""

    task: Literal["rank"]
    data: RankData
    teacher: RankTeacher = RankTeacher()
    student: RankShape = RankStudent()
    distil: RankDistil
    gates: RankGates = RankGates()

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        if self.trim is not None:
            raise ValueError("compress: a trained vocabulary is trimmed for embed students; see student.vocabulary")
        if self.int8 is not None and self.int8.int8 == "qat":
            raise ValueError("compress: qat is for classify students")
        apart = not isinstance(self.student, RankStudent) and self.student.initialise == "teacher-layers"
        if self.distil.states is not None and not apart:
            raise ValueError("distil.states is for split rankers and bi-encoders that start from teacher-layers")
        if self.distil.states is not None and isinstance(self.student, BiEncoderStudent) and not self.teacher.fine_tune:
            raise ValueError("distil.states of a bi-encoder needs teacher.fine_tune: a cross-encoder gives no vectors")
        return self

    def files(self) -> Mapping[str, str]:
        """The files of `data` by their key in it."""
        return {f"sets.{i}.{key}": file for i, each in enumerate(self.data.sets) for key, file in each.files()}
