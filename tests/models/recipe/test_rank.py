"""The recipe of a rank student: what is read, and what is refused with which line."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import RecipeInvalid
from models.recipe.bi_encoder import BiEncoderStudent
from models.recipe.rank import Queries, RankRecipe, RankStudent, SplitRankerStudent
from models.recipe.read import recipe_of

SPLIT = {"architecture": "split-ranker"}
BI = {"architecture": "bi-encoder"}


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    for name in ("train.jsonl", "test.jsonl", "corpus.jsonl", "q.jsonl", "r.tsv"):
        (folder / name).write_text("")
    queries = {"queries": str(folder / "q.jsonl"), "qrels": str(folder / "r.tsv")}
    sets = [
        {"name": "one", "train": str(folder / "train.jsonl"), "tests": {"one": str(folder / "test.jsonl")}},
        {"name": "two", "corpus": str(folder / "corpus.jsonl"), "tests": {"two": queries}},
    ]
    whole = {
        "schema": 1,
        "name": "toy",
        "task": "rank",
        "data": {"sets": sets, "gate": {"cut": 0.1}},
        "distil": {"objectives": [{"listwise_kl": {}}]},
    }
    for key, value in changes.items():
        target = whole
        *parents, last = key.split("__")
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else target.setdefault(parent, {})
        target[int(last) if isinstance(target, list) else last] = value
    return whole


def test_both_forms_of_a_source_are_read(tmp_path: Path) -> None:
    recipe = recipe_of(document(tmp_path), where="R")
    assert isinstance(recipe, RankRecipe)
    assert isinstance(recipe.data.sets[1].tests["two"], Queries)
    assert sorted(recipe.files()) == [
        "sets.0.tests.one",
        "sets.0.train",
        "sets.1.corpus",
        "sets.1.tests.two.qrels",
        "sets.1.tests.two.queries",
    ]


def test_the_digest_does_not_see_where_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        whole = document(tmp_path / name)
        for each in whole["data"]["sets"]:
            for key, value in each.items():
                each[key] = value.replace(str(tmp_path / name), "${DATA}") if isinstance(value, str) else value
        whole["data"]["sets"] = whole["data"]["sets"][:1]
        whole["data"]["sets"][0]["tests"] = {"one": "${DATA}/test.jsonl"}
        monkeypatch.setenv("DATA", str(tmp_path / name))
        digests.add(recipe_of(whole, where="R").digest())
    assert len(digests) == 1


def test_the_architecture_says_which_student_is_meant(tmp_path: Path) -> None:
    assert isinstance(recipe_of(document(tmp_path), where="R").student, RankStudent)
    split = recipe_of(document(tmp_path, student=SPLIT), where="R").student
    assert isinstance(split, SplitRankerStudent)
    assert (split.teacher_layers, split.joined_teacher_layers, split.state_width) == ((0, 1, 3), (4, 5), 96)
    vectors = recipe_of(document(tmp_path, student=BI), where="R").student
    assert isinstance(vectors, BiEncoderStudent)
    assert (vectors.teacher_layers, vectors.vector_width) == ((0, 2, 5), None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data__sets__0__train", None, "data: sets: none has a train"),
        ("data__gate", {}, "data.gate.cut: missing"),
        ("data__sets__1__name", "one", "data: sets: two sets, or two tests, have one name"),
        ("data__sets__1__corpus", None, "data.sets.1: set two has queries over a corpus, and names no corpus"),
        ("data__sets__0__corpus", "c", "data.sets.0: set one names a corpus that nothing is asked of"),
        ("data__sets__1__tests", {}, "data.sets.1: set two names no queries"),
        ("data__sets__0__train", {"queries": "q"}, "data.sets.0.train.qrels: missing"),
        ("data__sets__0__title", "both", "data.sets.0.title: "),
        ("data__sets__0__depth", 1, "data.sets.0.depth: "),
        ("data__gate", {"cut": 0.7}, "data.gate.cut: "),
        ("data__calibration", {"cut": 0.48}, "data: dev.cut and calibration.cut must not exceed 0.5 together"),
        ("distil__objectives", [{}], "distil.objectives.0: an objective has exactly one of"),
        (
            "distil__objectives",
            [{"margin_mse": {}, "listwise_kl": {}}],
            "distil.objectives.0: an objective has exactly",
        ),
        (
            "distil__objectives",
            [{"margin_mse": None}],
            "distil.objectives.0: an objective has exactly one of margin_mse",
        ),
        ("distil__seed", -1, "distil.seed: Input should be greater than or equal to 0"),
        ("teacher__fine_tune", {"seed": -1}, "teacher.fine_tune.seed: Input should be greater than or equal to 0"),
        ("teacher__fine_tune", {"max_tokens": 1024}, "teacher.fine_tune.max_tokens: Input should be less than or"),
        ("teacher__max_tokens", 4, "teacher.max_tokens: Input should be greater than or equal to 8"),
        ("distil__negatives", {"hard": 0, "random": 0}, "distil.negatives: hard and random must not both be 0"),
        ("teacher__fine_tune", {"label_smoothing": 0.1}, "label_smoothing is for teachers that classify"),
        ("teacher__fine_tune", {"loss": "margin"}, "teacher.fine_tune.loss: "),
        ("student__teacher_layers", [0], "student: teacher_layers must name one teacher layer for each"),
        ("student__heads", 7, "student: hidden must be a multiple of heads"),
        ("student__embeddings", "teacher-pca", "student: embeddings: layers of the teacher need its embeddings"),
        ("student__exits", [0, 2], "student.exits: unknown key"),
        ("student", {"architecture": "siamese"}, "architecture must be one of cross-encoder, split-ranker, bi-encoder"),
        ("student", {**SPLIT, "state_width": 0}, "student.state_width: Input should be greater than or equal to 1"),
        ("student", {**SPLIT, "teacher_layers": [0]}, "student: teacher_layers must name one teacher layer for each"),
        ("student", {**SPLIT, "joined_layers": 1}, "student: joined_teacher_layers must name one teacher layer for"),
        ("student", {**SPLIT, "embeddings": "teacher-pca"}, "student: embeddings: layers of the teacher need"),
        (
            "student",
            {**SPLIT, "initialise": "random", "joined_heads": 7},
            "student: hidden must be a multiple of heads and of joined_heads",
        ),
        ("student", {**SPLIT, "joined_width": 3}, "student.joined_width: unknown key"),
        ("student", {**BI, "vector_width": 385}, "student: vector_width must not exceed hidden"),
        ("student", {**BI, "vector_width": 0}, "student.vector_width: Input should be greater than or equal to 1"),
        ("student", {**BI, "teacher_layers": [0]}, "student: teacher_layers must name one teacher layer for each"),
        ("student", {**BI, "embeddings": "teacher-pca"}, "student: embeddings: layers of the teacher need"),
        ("student", {**BI, "initialise": "random", "heads": 7}, "student: hidden must be a multiple of heads"),
        ("student", {**BI, "state_width": 96}, "student.state_width: unknown key"),
        ("gates__beats", ["tf-idf"], "gates.beats.0: "),
        ("compress", [{"int8": "qat"}], "compress: qat is for classify students"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        recipe_of(document(tmp_path, **{key: value}), where="R")
    assert str(caught.value).startswith("R: ")
    assert said in str(caught.value)
