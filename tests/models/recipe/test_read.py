"""The recipe: what is read, what is refused with which line, and what its digest stands for."""

import re
from pathlib import Path

import pytest
import yaml

from models.errors import RecipeInvalid
from models.recipe.classify import ClassifyRecipe
from models.recipe.parts import Cut, digest_of
from models.recipe.read import read_recipe, recipe_of

DESIGN_EXAMPLE = """
schema: 1
name: intent
task: classify                      # classify | rank | embed
seed: 0
data: {train: ${DATA}/train.jsonl, dev: {cut: 0.05}, calibration: {cut: 0.15}, gate: {cut: 0.05},
       test: ${DATA}/test.jsonl, unlabelled: []}
teacher: {from: default, fine_tune: {epochs: 6, learning_rate: 1.5e-4, batch_items: 32}}
student: {architecture: encoder, layers: 4, hidden: 128, heads: 2, feed_forward: 512,
          exits: [0, 2, 4], embeddings: teacher-pca, vocabulary: trimmed}
distil: {objectives: [{soft_labels: {temperature: 1}}], gold_weight: 0.3, augment: {rows: 9},
         epochs: 4, learning_rate: 1.0e-3, average: swa}
compress: [{int8: static}]
exits: {confidence: max_probability, risks: [0.005, 0.01, 0.02, 0.05], delta: 0.05}
gates: {retention: 0.985, bytes: 12_000_000}
publish: {alias: canary}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder named by ${DATA}, with the two files of the example in it."""
    return data_at(tmp_path / "data", monkeypatch)


def data_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("")
    monkeypatch.setenv("DATA", str(folder))
    return folder


def written(tmp_path: Path, text: str = DESIGN_EXAMPLE) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    """The message with which a recipe is refused: one line that names the file or the override."""
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path, overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_status == 2
    return message.replace(str(path), "R").replace(str(path.parent), "")


def test_the_example_of_the_design_is_read(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    assert recipe.data.train == f"{folder}/train.jsonl"
    assert recipe.data.dev == Cut(cut=0.05)
    assert recipe.student.exits == (0, 2, 4)
    assert recipe.distil.learning_rate == 1e-3
    assert recipe.gates.bytes == 12_000_000


def test_a_dev_file_is_read_as_a_file(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), overrides=("data.dev=${DATA}/test.jsonl",))
    assert recipe.data.dev == f"{folder}/test.jsonl"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("colour=red", "R: colour: unknown key"),
        ("student.colour=red", "R: student.colour: unknown key"),
        ("distil.objectives.0.soft_labels.colour=red", "R: distil.objectives.0.soft_labels.colour: unknown key"),
        ("data.dev.colour=red", "R: data.dev.colour: unknown key"),
        ("student.layers=many", "R: student.layers: Input should be a valid integer"),
        ("student.heads=3", "R: student: hidden must be a multiple of heads"),
        ("student.exits=[2, 0, 4]", "R: student: exits must rise and end at layers"),
        ("student.exits=[]", "R: student.exits: must not be empty"),
        ("student.initialise=teacher-layers", "R: student: teacher_layers must name one teacher layer for each"),
        ("distil.objectives=[]", "R: distil.objectives: must not be empty"),
        (
            "distil.objectives=[{soft_labels: null}]",
            "R: distil.objectives.0: an objective has exactly one of soft_labels",
        ),
        ("distil.objectives=soft_labels", "R: distil.objectives: must be a list"),
        ("distil.objectives=[soft_labels]", "R: distil.objectives.0: must be a mapping"),
        ("distil.augment={drop: 0.6, replace: 0.5}", "R: distil.augment: drop and replace must not exceed 1 together"),
        ("distil.augment.seed=-1", "R: distil.augment.seed: Input should be greater than or equal to 0"),
        ("seed=-1", "R: seed: Input should be greater than or equal to 0"),
        ("seed=2147483648", "R: seed: Input should be less than 2147483648"),
        ("teacher.fine_tune.seed=-1", "R: teacher.fine_tune.seed: Input should be greater than or equal to 0"),
        ("teacher.fine_tune.max_tokens=1024", "R: teacher.fine_tune.max_tokens: Input should be less than or equal to"),
        ("teacher.fine_tune.label_smoothing=1", "R: teacher.fine_tune.label_smoothing: Input should be less than 1"),
        ("student.dropout=1", "R: student.dropout: Input should be less than 1"),
        ("exits.risks=[]", "R: exits.risks: must not be empty"),
        ("golden_texts=['']", "R: golden_texts.0: String should match"),
        ("gates={no: 1}", "R: key false: keys are text; put it in quotes"),
        ("distil.objectives.0.logit_mse={}", "R: distil.objectives.0: an objective has exactly one of"),
        ("distil.learning_rate=.nan", "R: holds a value that is no plain text, number, list or mapping"),
        ("data.gate.cut=0.5", "R: data.gate.cut: Input should be less than 0.5"),
        ("data.dev.cut=0.4", "R: data: dev.cut and calibration.cut must not exceed 0.5 together"),
        ("exits.risks=[0.02, 0.01]", "R: exits: risks must rise, each once"),
        ("publish.alias='7'", "R: publish: alias must not be a number"),
        ("publish.precisions=[fp32]", "R: publish: precisions must name each precision once, default_precision among"),
        ("compress=[]", "R: recipe: publish.precisions names int8, which only compress can make"),
        ("name=Not A Name", "R: name: String should match pattern"),
        ("schema=2", "R: schema: Input should be 1"),
        ("description=2024-01-01", "R: holds a value that is no plain text, number, list or mapping"),
        ("data.train=${DATA}/gone.jsonl", "R: data.train: no such file: /data/gone.jsonl"),
        ("data.dev=${DATA}/gone.jsonl", "R: data.dev: no such file: /data/gone.jsonl"),
        ("data.unlabelled=[${DATA}/test.jsonl, ${DATA}]", "R: data.unlabelled.1: no such file: /data"),
        ("data.train=${UNDERSTUDY_UNSET_VARIABLE}/x", "R: ${UNDERSTUDY_UNSET_VARIABLE} is not set in the environment"),
        ("seed", "--set seed: must be KEY.KEY=VALUE"),
        ("=1", "--set =1: must be KEY.KEY=VALUE"),
        ("seed={", "--set seed={: must be KEY.KEY=VALUE"),
        ("distil.objectives.7.x=1", "--set distil.objectives.7.x=1: must be KEY.KEY=VALUE"),
        ("distil.objectives.first=1", "--set distil.objectives.first=1: must be KEY.KEY=VALUE"),
    ],
)
def test_a_wrong_key_or_value_is_named(folder: Path, tmp_path: Path, override: str, message: str) -> None:
    assert refused(written(tmp_path), override).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "R: not YAML: while parsing"),
        ("- 1", "R: a recipe is a mapping"),
        ("", "R: a recipe is a mapping"),
        ("name: intent\n", "R: task: must be one of classify"),
        ("schema: 1\nseed: 1\nseed: 2\n", "R: not YAML: key 'seed' occurs twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "R: not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refused(written(tmp_path, text)).startswith(message)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.yaml") == "R: cannot be read: No such file or directory"
    assert refused(tmp_path).endswith("cannot be read: Is a directory")
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\n")
    assert refused(path).startswith("R: not YAML: 'utf-8' codec can't decode byte 0xff")


def test_a_key_missing_from_a_part_is_named(folder: Path, tmp_path: Path) -> None:
    text = DESIGN_EXAMPLE.replace("gate: {cut: 0.05},", "")
    assert refused(written(tmp_path, text)) == "R: data.gate: missing"


def test_overrides_reach_into_mappings_and_lists(folder: Path, tmp_path: Path) -> None:
    overrides = ("seed=3", "distil.objectives.0.soft_labels.temperature=2", "compress.0={int8: qat}", "gates.bytes=5")
    recipe = read_recipe(written(tmp_path), overrides=overrides)
    objective = recipe.distil.objectives[0].soft_labels
    assert recipe.seed == 3
    assert objective is not None
    assert objective.temperature == 2
    assert recipe.compress[0].int8 == "qat"
    assert recipe.gates.bytes == 5


def test_an_override_makes_the_part_it_sets(folder: Path, tmp_path: Path) -> None:
    text = re.sub(r"teacher:.*\n", "", DESIGN_EXAMPLE)
    recipe = read_recipe(written(tmp_path, text), overrides=("teacher.fine_tune.epochs=2",))
    assert recipe.teacher.fine_tune is not None
    assert recipe.teacher.fine_tune.epochs == 2


def test_the_written_form_keeps_variables_and_overrides_and_no_defaults(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), overrides=("seed=3",))
    assert recipe.written["data"]["train"] == "${DATA}/train.jsonl"
    assert recipe.written["seed"] == 3
    assert "initialise" not in recipe.written["student"]
    assert str(folder) not in str(recipe.written)


def test_the_written_form_is_a_copy(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    recipe.written["data"]["train"] = "elsewhere"
    assert recipe.written["data"]["train"] == "${DATA}/train.jsonl"


def test_the_written_form_is_a_recipe_again(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), overrides=("seed=3",))
    again = read_recipe(written(tmp_path, yaml.safe_dump(recipe.written)))
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_a_recipe_made_in_code_has_a_written_form_too(folder: Path, tmp_path: Path) -> None:
    recipe = ClassifyRecipe.model_validate(yaml.safe_load(DESIGN_EXAMPLE.replace("${DATA}", str(folder))))
    assert recipe.written["data"]["train"] == f"{folder}/train.jsonl"
    assert recipe.written["teacher"]["from"] == "default"
    assert len(recipe.digest()) == 64


def test_the_digest_is_the_same_where_the_data_lie_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("data.unlabelled=[${DATA}/test.jsonl]",)
    here = read_recipe(written(tmp_path), overrides=overrides)
    elsewhere = data_at(tmp_path / "elsewhere", monkeypatch)
    there = read_recipe(written(tmp_path), overrides=overrides)
    assert there.data.train == f"{elsewhere}/train.jsonl"
    assert there.digest() == here.digest()


def test_the_digest_ignores_order_and_layout_of_the_file(folder: Path, tmp_path: Path) -> None:
    first = read_recipe(written(tmp_path)).digest()
    parts = re.split(r"\n(?=\w)", DESIGN_EXAMPLE.strip())
    assert read_recipe(written(tmp_path, "\n\n".join(reversed(parts)))).digest() == first
    assert read_recipe(written(tmp_path), overrides=("student.dropout=0.1",)).digest() == first  # the default, said


@pytest.mark.parametrize(
    "override", ["seed=1", "student.layers=2", "data.gate.cut=0.06", "data.test=${DATA}/../data/test.jsonl"]
)
def test_the_digest_moves_with_every_key(folder: Path, tmp_path: Path, override: str) -> None:
    path = written(tmp_path)
    extra = ("student.exits=[0, 2]",) if "layers" in override else ()
    assert read_recipe(path, overrides=(override, *extra)).digest() != read_recipe(path).digest()


def test_a_variable_outside_the_data_counts_by_its_value(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for value in ("1", "2"):
        monkeypatch.setenv("SEED", value)
        recipe = read_recipe(written(tmp_path), overrides=("seed=${SEED}",))
        assert recipe.seed == int(value)
        digests.add(recipe.digest())
    assert len(digests) == 2


def test_a_recipe_cannot_be_changed(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 4  # type: ignore[misc]


def test_the_digest_of_a_value_ignores_the_order_of_its_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])


def test_a_recipe_that_names_no_backend_keeps_its_digest(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    plain = read_recipe(path)
    assert plain.exits.backends == ("onnxruntime",)
    assert "backends" not in plain.exits.model_dump()
    said = read_recipe(path, overrides=("exits.backends=[onnxruntime]",))
    assert said.digest() == plain.digest()
    more = read_recipe(path, overrides=("exits.backends=[onnxruntime, openvino]",))
    assert more.digest() != plain.digest()
    assert more.exits.model_dump(mode="json")["backends"] == ["onnxruntime", "openvino"]


def test_layers_of_a_teacher_need_its_embeddings(folder: Path, tmp_path: Path) -> None:
    copied = ("student.initialise=teacher-layers", "student.teacher_layers=[0, 2, 4, 5]")
    assert refused(written(tmp_path), *copied).startswith("R: student: embeddings: layers of the teacher need its")
    whole = read_recipe(written(tmp_path), overrides=(*copied, "student.embeddings=teacher"))
    assert whole.student.teacher_layers == (0, 2, 4, 5)


def test_something_must_teach_the_labels(folder: Path, tmp_path: Path) -> None:
    inside = ("distil.objectives=[{hidden: {}}, {attention: {}}]", "distil.gold_weight=0")
    says = "R: recipe: distil.objectives: hidden and attention teach no labels"
    assert refused(written(tmp_path), *inside).startswith(says)
    assert read_recipe(written(tmp_path), overrides=inside[:1]).distil.gold_weight == 0.3


def test_a_file_of_rows_may_stand_alone_in_a_list(folder: Path, tmp_path: Path) -> None:
    files = "data.train=[${DATA}/train.jsonl, {file: ${DATA}/test.jsonl, labels: {'0': no_match}}]"
    recipe = read_recipe(written(tmp_path), overrides=(files,))
    assert [dict(each.labels) for each in recipe.data.train] == [{}, {"0": "no_match"}]
    assert list(recipe.files())[:2] == ["train.0.file", "train.1.file"]
    quotes = files.replace("'0'", "0")
    assert refused(written(tmp_path), quotes) == "R: key 0: keys are text; put it in quotes"


@pytest.mark.parametrize("backends", ["[onnxruntime, onnxruntime]", "[]", "[Open VINO]"])
def test_backends_are_names_each_once(folder: Path, tmp_path: Path, backends: str) -> None:
    assert refused(written(tmp_path), f"exits.backends={backends}").startswith("R: exits")


def test_a_recipe_may_come_as_a_mapping(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    again = recipe_of(recipe.written, where="the recipe of intent")
    assert again.digest() == recipe.digest()
    with pytest.raises(RecipeInvalid, match="the recipe of intent: seed: "):
        recipe_of(recipe.written | {"seed": "many"}, where="the recipe of intent")
