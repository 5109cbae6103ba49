"""The recipe of an embedder: what is read, what is refused in which words, and what its digest stands for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from models.errors import RecipeInvalid
from models.recipe.embed import EmbedRecipe, EmbedStudent
from models.recipe.read import read_recipe

RECIPES = Path(__file__).parents[3] / "models" / "recipes"
FILES = ("texts.jsonl", "more.jsonl", "dev.jsonl", "test.jsonl", "fit.jsonl", "near.jsonl")
RECIPE = """
schema: 1
name: near
task: embed
data:
  texts: [{file: "${DATA}/texts.jsonl", licence: "CC0", sources: [wiki]}, "${DATA}/more.jsonl"]
  dev: ${DATA}/dev.jsonl
  test: ${DATA}/test.jsonl
  neighbours: {fit: "${DATA}/fit.jsonl", test: "${DATA}/near.jsonl"}
student: {layers: 2, hidden: 384, heads: 6, attention_width: 192, teacher_layers: [0, 4]}
distil:
  objectives: [{cosine: {weight: 1}}, {similarities: {temperature: 0.05}}]
  prefixes: [{dimensions: 128, weight: 0.5}, {dimensions: 64}]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe above, its files there and empty."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("")
    monkeypatch.setenv("DATA", str(folder))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def read(path: Path, *overrides: str) -> EmbedRecipe:
    found = read_recipe(path, overrides=overrides)
    assert isinstance(found, EmbedRecipe)
    return found


def refused(path: Path, *overrides: str) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path, overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "R").replace(str(path.parent), "")


def test_what_is_not_said_has_a_default(recipe: Path) -> None:
    found = read(recipe)
    assert [(text.licence, text.sources) for text in found.data.texts] == [("CC0", ("wiki",)), ("not stated", ())]
    assert (found.data.gate.cut, found.data.joined) == (0.005, 0.0)
    assert (found.student.vocabulary, found.student.feed_forward, found.student.activation) == ("trimmed", 384, "gelu")
    assert [prefix.weight for prefix in found.distil.prefixes] == [0.5, 1.0]
    assert found.publish.precisions == ("fp32", "int8")
    assert found.teacher.fine_tune is None


def test_every_file_is_named_by_its_key(recipe: Path) -> None:
    files = read(recipe).files()
    assert list(files) == ["texts.0", "texts.1", "dev", "test", "neighbours.fit", "neighbours.test"]
    assert [Path(file).name for file in files.values()] == list(FILES)
    assert "neighbours.fit" not in read(recipe, "data.neighbours=null").files()


@pytest.mark.parametrize("key", ["texts", "texts.0", "texts.1", "dev", "test", "neighbours.fit", "neighbours.test"])
def test_a_file_that_is_not_there_is_named(recipe: Path, key: str) -> None:
    value = "[/gone.jsonl]" if key == "texts" else "/gone.jsonl"
    key_of = {"texts": "texts.0", "texts.0": "texts.0"}.get(key, key)
    assert refused(recipe, f"data.{key}={value}") == f"R: data.{key_of}: no such file: /gone.jsonl"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("colour=red", "R: colour: unknown key"),
        ("data.colour=red", "R: data.colour: unknown key"),
        ("data.texts.0.colour=red", "R: data.texts.0.colour: unknown key"),
        ("data.neighbours.colour=red", "R: data.neighbours.colour: unknown key"),
        ("student.exits=[0, 2]", "R: student.exits: unknown key"),
        ("distil.gold_weight=0.3", "R: distil.gold_weight: unknown key"),
        ("distil.objectives.0.cosine.colour=red", "R: distil.objectives.0.cosine.colour: unknown key"),
        ("distil.prefixes.0.colour=red", "R: distil.prefixes.0.colour: unknown key"),
        ("exits={risks: [0.05]}", "R: exits: unknown key"),
        ("gates.accuracy=0.9", "R: gates.accuracy: unknown key"),
        ("data.texts=[]", "R: data.texts: must not be empty"),
        ("data.texts=${DATA}/texts.jsonl", "R: data.texts: must be a list"),
        ("data.texts.0=7", "R: data.texts.0: must be a mapping"),
        ("data.dev={cut: 0.1}", "R: data.dev: must be text"),
        ("data.joined=1.5", "R: data.joined: Input should be less than or equal to 1"),
        ("data.join_at_most=1", "R: data.join_at_most: Input should be greater than or equal to 2"),
        ("data.join_at_most=65", "R: data.join_at_most: Input should be less than or equal to 64"),
        ("data.gate.cut=0", "R: data.gate.cut: Input should be greater than 0"),
        ("data.neighbours={fit: x}", "R: data.neighbours.test: missing"),
        ("student.architecture=ngram", "R: student: architecture must be one of encoder, static"),
        ("student.attention_width=100", "R: student: attention_width (or hidden) must be a multiple of heads"),
        ("student.heads=5", "R: student: attention_width (or hidden) must be a multiple of heads"),
        ("student.teacher_layers=[0]", "R: student: teacher_layers must name one teacher layer for each of the layers"),
        ("student.layers=3", "R: student: teacher_layers must name one teacher layer for each of the layers"),
        ("student.max_tokens=1024", "R: student.max_tokens: Input should be less than or equal to 512"),
        ("student.max_tokens=2", "R: student.max_tokens: Input should be greater than or equal to 8"),
        ("student.hidden=0", "R: student.hidden: Input should be greater than or equal to 1"),
        ("distil.objectives=[]", "R: distil.objectives: must not be empty"),
        ("distil.objectives=[{}]", "R: distil.objectives.0: an objective has exactly one of cosine, similarities"),
        ("distil.objectives=[{cosine: null}]", "R: distil.objectives.0: an objective has exactly one of cosine"),
        ("seed=-1", "R: seed: Input should be greater than or equal to 0"),
        ("student.dropout=1", "R: student.dropout: Input should be less than 1"),
        ("student.teacher_layers=[0, -1]", "R: student.teacher_layers.1: Input should be greater than or equal to 0"),
        ("student.embeddings=teacher-pca", "R: student: embeddings: layers of the teacher need its embeddings"),
        ("distil.objectives.0.similarities={}", "R: distil.objectives.0: an objective has exactly one of cosine"),
        ("distil.objectives=[{soft_labels: {}}]", "R: distil.objectives.0.soft_labels: unknown key"),
        ("distil.objectives.0.cosine.weight=0", "R: distil.objectives.0.cosine.weight: Input should be greater than 0"),
        (
            "distil.objectives.1.similarities.temperature=0",
            "R: distil.objectives.1.similarities.temperature: Input should be greater than 0",
        ),
        ("distil.prefixes.0.dimensions=0", "R: distil.prefixes.0.dimensions: Input should be greater than or equal"),
        ("distil.prefixes.0.weight=-1", "R: distil.prefixes.0.weight: Input should be greater than 0"),
        ("distil.prefixes.0.dimensions=64", "R: distil: prefixes must name each length once"),
        ("distil.batch_items=1", "R: distil.batch_items: Input should be greater than or equal to 2"),
        ("distil.epochs=0", "R: distil.epochs: Input should be greater than 0"),
        ("gates.cosine=1.1", "R: gates.cosine: Input should be less than or equal to 1"),
        ("teacher.fine_tune={}", "R: recipe: teacher.fine_tune: an embed student learns from the teacher as it is"),
        ("compress=[{int8: qat}]", "R: recipe: compress: qat is for classify students"),
        ("compress=[]", "R: recipe: publish.precisions names int8, which only compress can make"),
        ("task=classify", "R: "),
    ],
)
def test_a_wrong_key_or_value_is_named(recipe: Path, override: str, says: str) -> None:
    assert refused(recipe, override).startswith(says)


def test_a_random_student_names_no_teacher_layers(recipe: Path) -> None:
    found = read(recipe, "student.initialise=random", "student.teacher_layers=[]", "student.layers=5")
    assert found.student.layers == 5


def test_heads_divide_the_attention_where_it_is_narrower() -> None:
    fits: dict[str, Any] = {"layers": 1, "teacher_layers": (0,)}
    assert EmbedStudent(hidden=384, heads=5, attention_width=160, **fits).attention_width == 160
    with pytest.raises(ValueError, match="multiple of heads"):
        EmbedStudent(hidden=384, heads=5, **fits)


def test_where_the_files_lie_is_no_part_of_the_digest(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    before = read(recipe).digest()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("DATA", str(tmp_path / "elsewhere"))
    assert read(recipe).digest() == before


@pytest.mark.parametrize(
    "override", ["seed=1", "data.joined=0.1", "data.texts.0.sources=[]", "distil.rotate=false", "gates.overlap=0.1"]
)
def test_every_setting_is_part_of_the_digest(recipe: Path, override: str) -> None:
    assert read(recipe, override).digest() != read(recipe).digest()


def test_the_shipped_recipe_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With empty files where its data would be; nothing in it is a path of somebody's machine."""
    path = RECIPES / "embed.yaml"
    document = yaml.safe_load(path.read_text().replace("${UNDERSTUDY_DATA}", str(tmp_path)))
    data = document["data"]
    near = data.get("neighbours", {})
    for file in [*(text["file"] for text in data["texts"]), data["dev"], data["test"], *near.values()]:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    found = read(path)
    assert str(tmp_path) not in str(found.written)
    assert max(prefix.dimensions for prefix in found.distil.prefixes) < found.student.hidden
