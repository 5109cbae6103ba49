"""The recipe of a classify student."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from models.errors import RecipeInvalid
from models.recipe.distil import Distil
from models.recipe.parts import FIRST_BACKEND, Cut, FileOrCut, Part, Recipe, Share
from models.recipe.student import Student
from service.bundle.manifest import Confidence, Name


class Data(Part):
    """Which rows go where. `parts: substrings` says that rows which are parts of a longer row move with it."""

    train: str
    dev: FileOrCut
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


class Exits(Part):
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


class ClassifyRecipe(Recipe):
    """Single texts to labels."""

    task: Literal["classify"]
    data: Data
    student: Student = Student()
    distil: Distil
    exits: Exits = Exits()

    def files(self) -> Mapping[str, str]:
        """The files of `data` by their key in it."""
        data = self.data
        named = {"train": data.train, "test": data.test} | ({"dev": data.dev} if isinstance(data.dev, str) else {})
        return named | {f"unlabelled.{i}": file for i, file in enumerate(data.unlabelled)}


def classify_recipe(recipe: Recipe) -> ClassifyRecipe:
    """A recipe that must be a classify one. Raises: RecipeInvalid: it is for another task."""
    if not isinstance(recipe, ClassifyRecipe):
        raise RecipeInvalid(f"task: {recipe.task}: only classify students have certificates")
    return recipe
