"""A student's shape by architecture: what is read, what is refused, and that older recipes mean what they meant."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import RecipeInvalid
from models.recipe.classify import ClassifyRecipe, classify_recipe
from models.recipe.over_tokens import BilstmSettings, CnnSettings
from models.recipe.read import recipe_of
from models.recipe.student import CascadeSettings, EncoderSettings, NgramSettings


def recipe(folder: Path, student: dict[str, Any] | None, **more: Any) -> ClassifyRecipe:
    for name in ("train", "test", "pool"):
        (folder / f"{name}.jsonl").write_text("")
    document = {
        "schema": 1,
        "name": "topic",
        "task": "classify",
        "data": {
            "train": str(folder / "train.jsonl"),
            "test": str(folder / "test.jsonl"),
            "dev": {"cut": 0.1},
            "calibration": {"cut": 0.1},
            "gate": {"cut": 0.1},
            "unlabelled": [str(folder / "pool.jsonl"), {"file": str(folder / "pool.jsonl"), "sources": ["news"]}],
        },
        "distil": {"objectives": [{"soft_labels": {}}]},
        **({} if student is None else {"student": student}),
        **more,
    }
    return classify_recipe(recipe_of(document, where="R"))


def test_a_shape_without_an_architecture_is_an_encoders(tmp_path: Path):
    assert recipe(tmp_path, None).student == EncoderSettings()
    assert recipe(tmp_path, {"layers": 2, "exits": [2]}).student == EncoderSettings(layers=2, exits=(2,))
    same = [recipe(tmp_path, student).digest() for student in ({"layers": 4}, {"architecture": "encoder", "layers": 4})]
    assert same[0] == same[1]


def test_heads_divide_the_attention_where_it_is_narrower(tmp_path: Path):
    assert recipe(tmp_path, {"hidden": 128, "heads": 5, "attention_width": 160}).student.attention_width == 160
    with pytest.raises(RecipeInvalid, match="attention_width must be a multiple of heads"):
        recipe(tmp_path, {"hidden": 128, "heads": 4, "attention_width": 42})


def test_every_architecture_says_what_its_exits_run_and_what_it_reads(tmp_path: Path):
    ngram = recipe(tmp_path, {"architecture": "ngram", "orders": 2, "max_tokens": 96}).student
    assert isinstance(ngram, NgramSettings)
    assert (ngram.exits, ngram.max_tokens) == ((0,), 96)
    for architecture, kind in (("bilstm", BilstmSettings), ("cnn", CnnSettings)):
        found = recipe(tmp_path, {"architecture": architecture, "vocabulary_min_count": 2}).student
        assert isinstance(found, kind)
        assert (found.exits, found.max_tokens, found.vocabulary_min_count) == ((0,), 64, 2)
    shape = {"architecture": "cascade", "ngram": {"orders": 2}, "encoder": {"max_tokens": 32, "vocabulary": "full"}}
    cascade = recipe(tmp_path, shape).student
    assert isinstance(cascade, CascadeSettings)
    assert (cascade.exits, cascade.max_tokens, cascade.vocabulary) == ((0, 0, 2, 4), 32, "full")


def test_a_pool_is_a_file_or_some_sources_of_one(tmp_path: Path):
    plain, some = recipe(tmp_path, None).data.unlabelled
    assert (plain.sources, some.sources) == ((), ("news",))


@pytest.mark.parametrize(
    ("student", "more", "message"),
    [
        (
            {"architecture": "abacus"},
            {},
            "R: student: architecture must be one of encoder, ngram, cascade, bilstm, cnn",
        ),
        ({"architecture": "ngram", "layers": 2}, {}, "R: student.layers: unknown key"),
        ({"architecture": "ngram", "orders": 5}, {}, "R: student.orders: Input should be less than or equal to 4"),
        ({"architecture": "ngram", "feature_dropout": 1.0}, {}, "R: student.feature_dropout: Input should be less"),
        ({"architecture": "cascade", "encoder": {"heads": 3}}, {}, "R: student.encoder: hidden must be a multiple"),
        ({"architecture": "cascade", "ngram": {"max_tokens": 9}}, {}, "R: student.ngram.max_tokens: unknown key"),
        (
            {"architecture": "cascade"},
            {"compress": [{"int8": "qat"}]},
            "R: recipe: compress: qat is for student.architecture encoder, not cascade",
        ),
        *(
            (
                {"architecture": architecture},
                {"distil": {"objectives": [{"hidden": {}}]}},
                f"R: recipe: distil.objectives: hidden and attention need layers, which {architecture} has not",
            )
            for architecture in ("ngram", "bilstm", "cnn")
        ),
        *(
            (
                {"architecture": architecture},
                {"compress": [{"int8": "qat"}]},
                f"R: recipe: compress: qat is for student.architecture encoder, not {architecture}",
            )
            for architecture in ("bilstm", "cnn")
        ),
        ({"architecture": "bilstm", "layers": 2}, {}, "R: student.layers: unknown key"),
        ({"architecture": "bilstm", "width": 0}, {}, "R: student.width: Input should be greater than or equal to 1"),
        ({"architecture": "bilstm", "pooling": "last"}, {}, "R: student.pooling: Input should be 'max', 'mean' or"),
        ({"architecture": "bilstm", "embeddings": "teacher"}, {}, "R: student.embeddings: Input should be"),
        ({"architecture": "cnn", "sizes": []}, {}, "R: student.sizes: must not be empty"),
        ({"architecture": "cnn", "sizes": [0]}, {}, "R: student.sizes.0: Input should be greater than or equal to 1"),
        ({"architecture": "cnn", "sizes": [17]}, {}, "R: student.sizes.0: Input should be less than or equal to 16"),
        ({"architecture": "cnn", "sizes": [3, 3]}, {}, "R: student: sizes must rise, each once"),
        ({"architecture": "cnn", "dropout": 1.0}, {}, "R: student.dropout: Input should be less than 1"),
        (
            {"architecture": "cnn", "embeddings": "random"},
            {},
            "R: student: channels: both keeps rows of the teacher's, and embeddings random has none of them",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_one_line(
    tmp_path: Path, student: dict[str, Any], more: dict[str, Any], message: str
):
    with pytest.raises(RecipeInvalid) as caught:
        recipe(tmp_path, student, **more)
    assert str(caught.value).startswith(message)


def test_an_int8_pass_without_other_weights_keeps_its_digest(tmp_path: Path) -> None:
    plain = recipe(tmp_path, None, compress=[{"int8": "static"}])
    assert recipe(tmp_path, None, compress=[{"int8": "static", "other_weights": "fp32"}]).int8 == plain.int8
    assert "other_weights" not in plain.model_dump(mode="json")["compress"][0]
    stored = recipe(tmp_path, None, compress=[{"int8": "static", "other_weights": "int8"}])
    assert stored.model_dump(mode="json")["compress"][0]["other_weights"] == "int8"
