"""The committed recipes: each valid and named as its file; those made to be compared learn from the same rows."""

import re
from pathlib import Path

import pytest

from models.recipe.classify import ClassifyRecipe
from models.recipe.embed import EmbedRecipe
from models.recipe.rank import RankRecipe
from models.recipe.read import read_recipe
from models.refresh.embed_training import check_start as check_embed_start
from models.refresh.embed_training import embed_teacher
from models.refresh.rank_training import check_start as check_rank_start
from models.refresh.rank_training import first_teacher
from models.refresh.training import check_start

RECIPES = sorted((Path(__file__).parents[3] / "models" / "recipes").glob("*.yaml"))

SAME_ROWS = [
    ("embed", "embed-static"),
    ("intent", "intent-pruned"),
    ("paraphrase", "paraphrase-siamese"),
    ("rank", "rank-bi-encoder"),
    ("rank", "rank-cross-encoder"),
    ("topic", "topic-bilstm"),
    ("topic", "topic-cnn"),
    ("topic", "topic-encoder"),
    ("topic", "topic-ngram"),
]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that a recipe names, empty: which there must be, and which is not read."""
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    for recipe in RECIPES:
        for file in re.findall(r"\$\{UNDERSTUDY_DATA\}/([\w./-]+)", recipe.read_text(encoding="utf-8")):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()


def named(name: str) -> Path:
    return next(path for path in RECIPES if path.stem == name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_valid_and_named_as_its_file(path: Path):
    assert read_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_student_fits_its_teacher(path: Path):
    recipe = read_recipe(path)
    if isinstance(recipe, ClassifyRecipe):
        check_start(recipe, labels=("x", "y"), pairs=path.stem.startswith("paraphrase"))
    elif isinstance(recipe, RankRecipe):
        check_rank_start(recipe, first_teacher(recipe))
    else:
        assert isinstance(recipe, EmbedRecipe)
        check_embed_start(recipe, embed_teacher(recipe))


@pytest.mark.parametrize(
    ("name", "override"), [("topic-ngram", "student.buckets=16"), ("topic", "student.ngram.buckets=16")]
)
def test_a_bag_of_few_buckets_fits_too(name: str, override: str):
    recipe = read_recipe(named(name), overrides=(override,))
    assert isinstance(recipe, ClassifyRecipe)
    check_start(recipe, labels=("x", "y"), pairs=False)


@pytest.mark.parametrize(("shipped", "other"), SAME_ROWS, ids=lambda name: name)
def test_what_is_to_be_compared_learns_from_the_same_rows_and_teacher(shipped: str, other: str):
    ours, theirs = read_recipe(named(shipped)), read_recipe(named(other))
    assert (ours.task, ours.data, ours.teacher) == (theirs.task, theirs.data, theirs.teacher)
