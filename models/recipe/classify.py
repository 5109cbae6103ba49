"""The recipe of a classify student."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from models.errors import RecipeInvalid
from models.recipe.distil import Distil
from models.recipe.parts import (
    FIRST_BACKEND,
    Cut,
    Files,
    FilesOrCut,
    Gates,
    GrownPart,
    Part,
    Pruning,
    Recipe,
    Share,
    Texts,
    left_of,
    named_files,
)
from models.recipe.student import EncoderSettings, Student
from service.bundle.manifest import Confidence, Name


class LabelChecks(Part):
    """Whether train is searched for rows whose label is likely wrong, by confident learning over `folds` parts of it.

    `report` lists them; `drop` trains without them too.
    """

    action: Literal["report", "drop"] = "report"
    folds: Annotated[int, Field(ge=2, le=20)] = 5


class Data(GrownPart):
    """Which rows go where; a role may have several files. `parts: substrings` says that rows which are parts of a
    longer row move with it; `first-text`, that pairs with the same first text are cut together. The teacher labels the
    texts of `unlabelled`."""

    LATER: ClassVar[frozenset[str]] = frozenset({"label_issues"})

    train: Files
    dev: FilesOrCut
    calibration: Cut
    gate: Cut
    test: Files
    unlabelled: tuple[Texts, ...] = ()
    parts: Literal["none", "substrings", "first-text"] = "none"
    allowed_overlap: Share = 0.01
    licence: str = "not stated"
    population: str = ""
    label_issues: LabelChecks | None = None

    @model_validator(mode="after")
    def _cuts_are_apart(self) -> Self:
        if isinstance(self.dev, Cut) and self.dev.cut + self.calibration.cut > 0.5:
            raise ValueError("dev.cut and calibration.cut must not exceed 0.5 together")
        return self


class Exits(GrownPart):
    """The exit rule and the promises to certify, all together at confidence 1 - `delta`.

    `backends`: each gets a certificate of its own for every shipped precision; the first one's temperatures are used.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"backends"})

    confidence: Confidence = "max_probability"
    risks: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.005, 0.01, 0.02, 0.05)
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    default_risk: Annotated[float, Field(gt=0, lt=1)] | None = 0.01
    backends: Annotated[tuple[Name, ...], Field(min_length=1)] = (FIRST_BACKEND,)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(set(self.backends)) < len(self.backends):
            raise ValueError("backends must name each backend once")
        if list(self.risks) != sorted(set(self.risks)):
            raise ValueError("risks must rise, each once")
        if self.default_risk is not None and self.default_risk < self.risks[0]:
            raise ValueError("default_risk must not be below every risk")
        return self


class ClassifyRecipe(Recipe):
    """Single texts to labels."""

    task: Literal["classify"]
    data: Data
    student: Student = EncoderSettings()
    distil: Distil
    exits: Exits = Exits()
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _suits_the_student(self) -> Self:
        student = self.student.architecture
        _check_pruning(self.prune, self.student)
        if self.trim is not None:
            raise ValueError("compress: a trained vocabulary is trimmed for embed students; see student.vocabulary")
        if student != "encoder" and self.int8 is not None and self.int8.int8 == "qat":
            raise ValueError(f"compress: qat is for student.architecture encoder, not {student}")
        inside = any(each.hidden is not None or each.attention is not None for each in self.distil.objectives)
        if student == "siamese" and inside:
            raise ValueError("distil.objectives: hidden and attention look at both texts, as no layer of siamese does")
        if student not in ("encoder", "cascade") and inside:
            raise ValueError(f"distil.objectives: hidden and attention need layers, which {student} has not")
        if not self.distil.gold_weight and not any(
            each.soft_labels or each.logit_mse for each in self.distil.objectives
        ):
            raise ValueError(
                "distil.objectives: hidden and attention teach no labels; add soft_labels or a gold_weight"
            )
        return self

    def files(self) -> Mapping[str, str]:
        """The files of `data` by their key in it."""
        data = self.data
        named = named_files("train", data.train) | named_files("test", data.test)
        if not isinstance(data.dev, Cut):
            named |= named_files("dev", data.dev)
        return named | {f"unlabelled.{i}": pool.file for i, pool in enumerate(data.unlabelled)}


def _check_pruning(pruning: Pruning | None, student: Student) -> None:
    """Raises: ValueError: there is nothing to prune in the student, or a share that is none of its parts."""
    if pruning is None:
        return
    if not isinstance(student, EncoderSettings):
        raise ValueError(f"compress: prune is for student.architecture encoder, not {student.architecture}")
    for name in ("heads", "feed_forward"):
        share, count = getattr(pruning, name), getattr(student, name)
        if share and left_of(count, share) == count:
            raise ValueError(f"compress: prune.{name}: {share:g} of the student's {count} is less than one")


def classify_recipe(recipe: Recipe) -> ClassifyRecipe:
    """A recipe that must be a classify one. Raises: RecipeInvalid: it is for another task."""
    if not isinstance(recipe, ClassifyRecipe):
        raise RecipeInvalid(f"task: {recipe.task}: only classify students have certificates")
    return recipe
