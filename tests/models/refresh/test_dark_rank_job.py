"""The refresh of rankers with dark examples and self-paced weights: told beforehand, made, and off by default."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.recipe.rank import RankRecipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.jobs import check, refresh
from models.refresh.progress import Reporter
from models.refresh.rank_job import start_rank
from models.refresh.rank_training import RankRun, darkened, make_ranker, make_ranking_teacher, student_lists
from service.store.store import Store

FILLERS = "card money sent where is my the late again good bad film wait failed lost stolen".split()  # noqa: SIM905
TELLING = "refund"
BOTH = ("distil.dark_examples={of_list: 2}", "distil.self_paced={}")


def write_lists(path: Path, count: int, *, seed: int) -> None:
    """Distinct queries with one relevant passage of four, which one word tells; a seed says how long they are."""
    chance = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        query, place = " ".join(chance.sample(FILLERS, 3 + seed)), chance.randrange(4)
        passages: list[dict[str, Any]] = []
        for at in range(4):
            words = chance.sample(FILLERS, 5)
            shown = [*words[:2], TELLING, *words[3:]] if at == place else words  # lengths tell nothing
            passages.append({"text": " ".join(shown), "label": int(at == place)})
        rows[query] = json.dumps({"query": query, "passages": passages})
    path.write_text("\n".join(rows.values()) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder_directory: Path) -> Path:
    """A folder with recipe.yaml, its data, and runs/ that the tests share."""
    folder = tmp_path_factory.mktemp("dark")
    write_lists(folder / "train.jsonl", 300, seed=0)
    write_lists(folder / "test.jsonl", 30, seed=1)
    files = {"train": str(folder / "train.jsonl"), "tests": {"lists": str(folder / "test.jsonl")}}
    recipe = {
        "schema": 1,
        "name": "toy-dark",
        "task": "rank",
        "data": {"sets": [{"name": "lists", **files}], "gate": {"cut": 0.2}},
        "teacher": {
            "from": str(encoder_directory),
            "fine_tune": {"epochs": 4, "learning_rate": 0.01, "max_tokens": 32, "batch_items": 8},
        },
        "student": {
            "layers": 1,
            "hidden": 16,
            "heads": 2,
            "feed_forward": 16,
            "head_width": 16,
            "teacher_layers": [0],
            "max_tokens": 32,
        },
        "distil": {
            "objectives": [{"listwise_kl": {}}, {"margin_mse": {"weight": 0.05}}],
            "negatives": {"hard": 2, "random": 1},
            "epochs": 4,
            "learning_rate": 0.01,
        },
        "compress": [{"int8": "static", "rows": 64}],
        "gates": {"retention": 0.9, "beats": [], "bytes": 1_000_000},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def run_of(folder: Path, *overrides: str) -> RankRun:
    recipe = read_recipe(folder / "recipe.yaml", overrides=overrides)
    assert isinstance(recipe, RankRecipe)
    return start_rank(recipe, StepCache(folder / "runs"), Reporter(io.StringIO()))


def test_a_dry_run_says_how_many_there_will_be(folder: Path) -> None:
    log = io.StringIO()
    check(read_recipe(folder / "recipe.yaml", overrides=BOTH), StepCache(folder / "runs"), Reporter(log))
    run = run_of(folder, *BOTH)
    lists = darkened(run, student_lists(run))
    made = sum(each.dark for each in lists)
    assert made > len(lists)
    pairs = f"{sum(len(each.passages) for each in lists):,} pairs of "
    (line,) = [line for line in log.getvalue().splitlines() if "scores for the student" in line]
    assert pairs in line
    assert f" tokens, {made:,} of them dark examples: about " in line


def test_without_the_keys_lists_and_step_are_as_before(folder: Path) -> None:
    run = run_of(folder)
    lists = student_lists(run)
    assert darkened(run, lists) is lists
    assert not {"dark_examples", "self_paced"} & run.recipe.distil.model_dump(mode="json").keys()
    assert {"dark_examples", "self_paced"} <= run_of(folder, *BOTH).recipe.distil.model_dump(mode="json").keys()


def test_a_student_is_made_with_them_and_ranks(folder: Path) -> None:
    log, recipe = io.StringIO(), read_recipe(folder / "recipe.yaml", overrides=BOTH)
    refresh(recipe, store=folder / "store", cache=StepCache(folder / "runs"), seeds=1, reporter=Reporter(log))
    bundle = Store(folder / "store").open("toy-dark", 1)
    assert bundle.manifest.quality is not None
    assert bundle.manifest.quality.by_precision["int8"][0].metrics["lists.ndcg@10"] > 0.95


def test_they_cost_their_own_labels_alone_and_leave_the_vocabulary(folder: Path) -> None:
    def known() -> int:
        return sum(len(np.load(path)["keys"]) for path in (folder / "runs" / "labels").rglob("*.npz"))

    plain = run_of(folder)
    teacher = make_ranking_teacher(plain)
    without = make_ranker(plain, teacher)
    before = known()
    run = run_of(folder, "distil.dark_examples={of_list: 1, mask: 0.5, mask_shared: 0.5}")
    made = make_ranker(run, teacher)
    fresh = {pair for each in darkened(run, student_lists(run)) for pair in each.pairs[len(each.pairs) - each.dark :]}
    assert 0 < known() - before <= len(fresh)
    assert made.folder != without.folder
    assert made.trimmed.tokenizer_json == without.trimmed.tokenizer_json
