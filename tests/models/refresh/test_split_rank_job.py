"""The refresh of a split ranker, whole: a teacher made, distilled into two stages, gates, card, store, second run."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.errors import RecipeInvalid
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.jobs import refresh
from models.refresh.progress import Reporter
from service.runtime.student import Student
from service.store.store import Store

FILLERS = "card money sent where is my the late again good bad film wait failed lost stolen".split()  # noqa: SIM905
TELLING = "refund"
STUDENT: dict[str, Any] = {
    "architecture": "split-ranker",
    "layers": 1,
    "hidden": 16,
    "heads": 1,
    "feed_forward": 16,
    "state_width": 8,
    "joined_layers": 1,
    "joined_heads": 2,
    "joined_feed_forward": 32,
    "head_width": 16,
    "teacher_layers": [0],
    "joined_teacher_layers": [1],
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
            passages.append({"text": " ".join([*words[:2], TELLING, *words[2:]] if at == place else words)})
            passages[-1]["label"] = int(at == place)
        rows[query] = json.dumps({"query": query, "passages": passages})
    path.write_text("\n".join(rows.values()) + "\n", encoding="utf-8")


def write_recipe(folder: Path, encoder_directory: Path) -> Path:
    write_lists(folder / "train.jsonl", 240, seed=0)
    write_lists(folder / "test.jsonl", 40, seed=1)
    recipe = {
        "schema": 1,
        "name": "toy-split",
        "task": "rank",
        "data": {
            "sets": [
                {"name": "lists", "train": str(folder / "train.jsonl"), "tests": {"lists": str(folder / "test.jsonl")}}
            ],
            "gate": {"cut": 0.2},
        },
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
    """A folder with recipe.yaml, log.txt, runs/ and store/, in which `toy-split@1` is published; read only."""
    folder, log = tmp_path_factory.mktemp("split"), io.StringIO()
    recipe = read_recipe(write_recipe(folder, encoder_directory))
    refresh(recipe, store=folder / "store", cache=StepCache(folder / "runs"), seeds=1, reporter=Reporter(log))
    (folder / "log.txt").write_text(log.getvalue(), encoding="utf-8")
    return folder


def test_it_is_a_bundle_of_two_stages_that_are_joined(made: Path) -> None:
    manifest = Store(made / "store").open("toy-split", 1).manifest
    assert (manifest.pairs, manifest.requires, manifest.max_tokens) == ("separate", ("joined",), 32)
    assert [(stage.id, stage.scope, stage.cacheable) for stage in manifest.stages] == [
        ("00", "item", True),
        ("01", "pair", False),
    ]
    assert manifest.stages[0].outputs["state"].dims == ("B", "T", 8)
    assert [(leave.stage, leave.output) for leave in manifest.exits] == [("01", "score")]


def test_the_student_ranks_as_it_was_taught(made: Path) -> None:
    bundle = Store(made / "store").open("toy-split", 1)
    assert bundle.manifest.quality is not None
    assert bundle.manifest.quality.by_precision["int8"][0].metrics["lists.ndcg@10"] > 0.95
    scores = {}
    for precision in ("fp32", "int8"):
        student = Student(bundle, precision=precision)
        student.check_golden()
        texts = ["my card is late again", "my refund is late again"]
        scores[precision] = student.all_exits(student.encoder.encode([("where is it", text) for text in texts]))[-1]
        assert scores[precision].shape == (2,)
        assert scores[precision][1] > scores[precision][0]
    assert np.abs(scores["fp32"] - scores["int8"]).max() < 0.1 * np.ptp(scores["fp32"])


def test_what_a_passage_costs_to_keep_is_told(made: Path) -> None:
    said = "state of a passage, 16 float32 -> 8 int8 a token: 64 -> 8 bytes a token (8 times less)"
    assert f"compress: {said}" in (made / "log.txt").read_text(encoding="utf-8")
    card = (Store(made / "store").open("toy-split", 1).path / "card.md").read_text(encoding="utf-8")
    assert said in card
    assert "reads query and passage apart, up to 32 tokens of each, and joins them" in card


def test_a_second_run_makes_nothing_anew(made: Path) -> None:
    cache = StepCache(made / "runs")
    published = refresh(
        read_recipe(made / "recipe.yaml"), store=made / "store", cache=cache, seeds=1, reporter=Reporter(io.StringIO())
    )
    assert (published.version, published.new) == (1, False)
    assert all(receipt.cached for receipt in cache.receipts)


def test_more_heads_than_the_teachers_are_refused_before_anything_is_made(made: Path, tmp_path: Path) -> None:
    recipe = read_recipe(made / "recipe.yaml", overrides=("student.joined_heads=4",))
    with pytest.raises(RecipeInvalid, match=r"student\.joined_heads: 4, the teacher's layers have 2"):
        refresh(
            recipe, store=tmp_path / "s", cache=StepCache(tmp_path / "r"), seeds=1, reporter=Reporter(io.StringIO())
        )
    assert list((tmp_path / "r").iterdir()) == []
