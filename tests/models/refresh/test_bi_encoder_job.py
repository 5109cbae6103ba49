"""The refresh of a bi-encoder, whole: a teacher made, vectors and then scores learned, card, store, a second run."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.data.rankings import prepare_rankings
from models.errors import RecipeInvalid
from models.recipe.rank import RankRecipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.jobs import check, refresh
from models.refresh.progress import Reporter
from models.refresh.rank_training import RankRun, make_ranker, make_ranking_teacher, student_lists
from models.students.bi_encoder import BiEncoder
from models.teachers.labels import label
from service.runtime.student import Student
from service.store.store import Store

FILLERS = "card money sent where is my the late again good bad film wait failed lost stolen".split()  # noqa: SIM905
TELLING = "refund"
STUDENT: dict[str, Any] = {
    "architecture": "bi-encoder",
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "feed_forward": 16,
    "token_width": 8,
    "vector_width": 12,
    "teacher_layers": [0],
    "max_tokens": 32,
}


def write_lists(path: Path, count: int, *, seed: int) -> None:
    """Distinct queries with one relevant passage of four, which one word tells; a seed says how long they are."""
    chance = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        query, place = " ".join(chance.sample(FILLERS, 3 + seed)), chance.randrange(4)
        passages = []
        for at in range(4):
            words = chance.sample(FILLERS, 5)
            shown = [*words[:2], TELLING, *words[3:]] if at == place else words  # lengths tell nothing
            passages.append({"text": " ".join(shown), "label": int(at == place)})
        rows[query] = json.dumps({"query": query, "passages": passages})
    path.write_text("\n".join(rows.values()) + "\n", encoding="utf-8")


def write_recipe(folder: Path, encoder_directory: Path) -> Path:
    write_lists(folder / "train.jsonl", 240, seed=0)
    write_lists(folder / "test.jsonl", 40, seed=1)
    lists = {"name": "lists", "train": str(folder / "train.jsonl"), "tests": {"lists": str(folder / "test.jsonl")}}
    recipe = {
        "schema": 1,
        "name": "toy-bi",
        "task": "rank",
        "data": {"sets": [lists], "gate": {"cut": 0.2}},
        "teacher": {
            "from": str(encoder_directory),
            "fine_tune": {"epochs": 4, "learning_rate": 0.01, "max_tokens": 32, "batch_items": 8},
        },
        "student": STUDENT,
        "distil": {
            "states": {"epochs": 2, "learning_rate": 0.005},
            "objectives": [{"listwise_kl": {}}, {"margin_mse": {"weight": 0.05}}],
            "negatives": {"hard": 2, "random": 1},
            "epochs": 4,
            "learning_rate": 0.01,
        },
        "compress": [{"int8": "static", "rows": 64}],
        "gates": {"retention": 0.9, "bytes": 1_000_000},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder_directory: Path) -> Path:
    """A folder with recipe.yaml, log.txt, runs/ and store/, in which `toy-bi@1` is published; read only."""
    folder, log = tmp_path_factory.mktemp("bi"), io.StringIO()
    recipe = read_recipe(write_recipe(folder, encoder_directory))
    refresh(recipe, store=folder / "store", cache=StepCache(folder / "runs"), seeds=1, reporter=Reporter(log))
    (folder / "log.txt").write_text(log.getvalue(), encoding="utf-8")
    return folder


def test_it_is_a_bundle_that_keeps_a_vector_a_passage(made: Path) -> None:
    manifest = Store(made / "store").open("toy-bi", 1).manifest
    assert (manifest.pairs, manifest.requires, manifest.max_tokens) == ("separate", ("joined",), 32)
    assert [(stage.id, stage.scope, stage.cacheable) for stage in manifest.stages] == [
        ("00", "item", True),
        ("01", "pair", False),
    ]
    vector = manifest.stages[0].outputs["vector"]
    assert (vector.dtype, vector.dims) == ("int8", ("B", 12))
    assert [(leave.stage, leave.output) for leave in manifest.exits] == [("01", "score")]


def test_the_student_ranks_as_it_was_taught(made: Path) -> None:
    bundle = Store(made / "store").open("toy-bi", 1)
    assert bundle.manifest.quality is not None
    assert bundle.manifest.quality.by_precision["int8"][0].metrics["lists.ndcg@10"] > 0.95
    texts = ["my card is late again", "my refund is late again"]
    scores = {}
    for precision in ("fp32", "int8"):
        student = Student(bundle, precision=precision)
        student.check_golden()
        scores[precision] = student.all_exits(student.encoder.encode([("where is it", text) for text in texts]))[-1]
        assert scores[precision].shape == (2,)
        assert scores[precision][1] > scores[precision][0]
    assert np.abs(scores["fp32"] - scores["int8"]).max() < 0.2 * np.ptp(scores["fp32"])


def test_its_scores_lie_where_the_teachers_do(made: Path) -> None:
    recipe = read_recipe(made / "recipe.yaml")
    assert isinstance(recipe, RankRecipe)
    run = RankRun(recipe, prepare_rankings(recipe), StepCache(made / "runs"), Reporter(io.StringIO()))
    teacher = make_ranking_teacher(run)
    student = make_ranker(run, teacher).student
    assert isinstance(student, BiEncoder)
    pairs = [pair for ranking in student_lists(run) for pair in ranking.pairs]
    theirs = label(teacher, pairs, directory=run.labels)[:, 0]
    served = Student(Store(made / "store").open("toy-bi", 1), precision="fp32")
    ours = served.all_exits(served.encoder.encode(pairs))[-1]
    assert abs(float(ours.mean() - theirs.mean())) < 0.05 * float(theirs.std())
    assert float(student.level) != 0


def test_vectors_are_learned_before_scores(made: Path) -> None:
    said = (made / "log.txt").read_text(encoding="utf-8")
    assert said.index("vectors") < said.index("student")
    kept = "vector of a passage, 12 int8: 48 -> 12 bytes, however long it is"
    assert f"compress: {kept}" in said
    card = (Store(made / "store").open("toy-bi", 1).path / "card.md").read_text(encoding="utf-8")
    assert kept in card
    assert "reads query and passage apart, up to 32 tokens of each, and joins them" in card


def test_a_second_run_makes_nothing_anew(made: Path) -> None:
    cache = StepCache(made / "runs")
    published = refresh(
        read_recipe(made / "recipe.yaml"), store=made / "store", cache=cache, seeds=1, reporter=Reporter(io.StringIO())
    )
    assert (published.version, published.new) == (1, False)
    assert all(receipt.cached for receipt in cache.receipts)


def test_a_dry_run_says_what_it_costs(made: Path, tmp_path: Path) -> None:
    log = io.StringIO()
    check(read_recipe(made / "recipe.yaml"), cache=StepCache(tmp_path), reporter=Reporter(log))
    assert "cost: teacher, scores for the student: " in log.getvalue()


def test_more_heads_than_the_teachers_are_refused_before_anything_is_made(made: Path, tmp_path: Path) -> None:
    recipe = read_recipe(made / "recipe.yaml", overrides=("student.heads=4",))
    with pytest.raises(RecipeInvalid, match=r"student\.heads: 4, the teacher's layers have 2"):
        refresh(
            recipe, store=tmp_path / "s", cache=StepCache(tmp_path / "r"), seeds=1, reporter=Reporter(io.StringIO())
        )
    assert list((tmp_path / "r").iterdir()) == []


def test_a_finished_cross_encoder_gives_no_vectors_to_learn(made: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"distil\.states of a bi-encoder needs teacher\.fine_tune"):
        read_recipe(made / "recipe.yaml", overrides=("teacher.fine_tune=null",))
