"""Compression passes in a recipe: pruning is read, and refused where it would cut nothing or everything."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import RecipeInvalid
from models.recipe.classify import ClassifyRecipe, classify_recipe
from models.recipe.parts import left_of
from models.recipe.read import recipe_of

DATA = {"dev": {"cut": 0.1}, "calibration": {"cut": 0.1}, "gate": {"cut": 0.1}}
INT8 = {"int8": "static"}


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """A function that reads a recipe with these compression passes and, where given, this student."""
    files = {role: str(tmp_path / f"{role}.jsonl") for role in ("train", "test")}
    for file in files.values():
        Path(file).write_text("")

    def read(compress: list[dict[str, Any]], **more: Any) -> ClassifyRecipe:
        document = {
            "schema": 1,
            "name": "toy",
            "task": "classify",
            "data": files | DATA,
            "student": {"heads": 4, "feed_forward": 64},
            "distil": {"objectives": [{"soft_labels": {}}]},
            "compress": compress,
        }
        return classify_recipe(recipe_of(document | more, where="R"))

    return read


def test_pruning_is_read_with_its_defaults(made: Any):
    recipe = made([{"prune": {"heads": 0.5, "recovery": {"epochs": 2}}}, INT8])
    found = recipe.prune
    assert found is not None
    assert (found.heads, found.feed_forward, found.rows) == (0.5, 0.0, 2000)
    assert (found.recovery.epochs, found.recovery.learning_rate) == (2, 2e-4)
    assert recipe.int8 is not None
    assert made([INT8]).prune is None


@pytest.mark.parametrize(
    ("prune", "says"),
    [
        ({"heads": 1.0}, "prune.heads: Input should be less than 1"),
        ({"feed_forward": 1.5}, "prune.feed_forward: Input should be less than 1"),
        ({"heads": -0.1}, "prune.heads: Input should be greater than or equal to 0"),
        ({}, "heads and feed_forward are both 0: nothing would be pruned"),
        ({"rows": 64}, "heads and feed_forward are both 0: nothing would be pruned"),
        ({"heads": 0.2}, "compress: prune.heads: 0.2 of the student's 4 is less than one"),
        ({"feed_forward": 0.01}, "compress: prune.feed_forward: 0.01 of the student's 64 is less than one"),
        ({"heads": 0.5, "rows": 0}, "prune.rows: Input should be greater than or equal to 1"),
        ({"heads": 0.5, "recovery": {"epochs": 0}}, "prune.recovery.epochs: Input should be greater than 0"),
        ({"heads": 0.5, "columns": 0.5}, "prune.columns: unknown key"),
    ],
)
def test_wrong_shares_are_refused(made: Any, prune: dict[str, Any], says: str):
    with pytest.raises(RecipeInvalid, match=r"^R: ") as refused:
        made([{"prune": prune}, INT8])
    assert says in str(refused.value)


def test_the_largest_share_leaves_a_head(made: Any):
    assert made([{"prune": {"heads": 0.99}}, INT8]).prune is not None
    assert left_of(4, 0.99) == 1
    assert [left_of(10, share / 10) for share in range(10)] == list(range(10, 0, -1))


@pytest.mark.parametrize(
    "compress",
    [
        [INT8, {"prune": {"heads": 0.5}}],
        [{"prune": {"heads": 0.5}}, {"prune": {"feed_forward": 0.5}}, INT8],
        [INT8, INT8],
    ],
)
def test_passes_stand_in_order_each_once(made: Any, compress: list[dict[str, Any]]):
    with pytest.raises(RecipeInvalid, match="compress has each pass once: prune, then vocabulary, then int8"):
        made(compress)


def test_only_encoders_are_pruned(made: Any):
    with pytest.raises(RecipeInvalid, match=r"compress: prune is for student\.architecture encoder, not ngram"):
        made([{"prune": {"heads": 0.5}}, INT8], student={"architecture": "ngram"})


def test_only_classify_students_are_pruned(made: Any, tmp_path: Path):
    files = {role: str(tmp_path / f"{role}.jsonl") for role in ("texts", "dev", "test")}
    for file in files.values():
        Path(file).write_text("")
    document = {
        "schema": 1,
        "name": "near",
        "task": "embed",
        "data": {**files, "texts": [files["texts"]], "gate": {"cut": 0.1}},
        "distil": {"objectives": [{"cosine": {}}]},
        "compress": [{"prune": {"heads": 0.5}}, INT8],
    }
    with pytest.raises(RecipeInvalid, match="compress: prune is for classify students, not embed"):
        recipe_of(document, where="R")
