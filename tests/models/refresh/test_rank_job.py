"""The refresh of a ranker, whole: two sets, a teacher made and distilled, gates, card, store, and the second run."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.errors import DataInvalid, GateFailed, RecipeInvalid, TeacherInvalid
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.jobs import check, refresh
from models.refresh.progress import Reporter
from models.report.seeds import seeds_told
from service.runtime.student import Student
from service.store.store import Store

FILLERS = "card money sent where is my the late again good bad film wait failed lost stolen".split()  # noqa: SIM905
TELLING = "refund"


def sentence(chance: random.Random, *, relevant: bool) -> str:
    words = chance.sample(FILLERS, 5)
    return " ".join([*words[:2], TELLING, *words[2:]] if relevant else words)


def queries(count: int, *, seed: int) -> list[str]:
    """Distinct queries; those of different seeds are distinct too, since they differ in length."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(chance.sample(FILLERS, 3 + seed))] = None
    return list(found)


def write_lists(path: Path, count: int, *, seed: int) -> None:
    """One relevant passage of four a query; every ninth query has none."""
    chance = random.Random(seed)
    rows = []
    for at, query in enumerate(queries(count, seed=seed)):
        place = chance.randrange(4) if at % 9 else None
        passages = [{"text": sentence(chance, relevant=i == place), "label": int(i == place)} for i in range(4)]
        rows.append(json.dumps({"query": query, "passages": passages}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_corpus(folder: Path) -> None:
    """60 documents, of which each query of a split is about one of its own ten relevant ones."""
    chance = random.Random(7)
    documents = [sentence(chance, relevant=at < 30) for at in range(60)]
    lines = [json.dumps({"id": f"d{at}", "title": "wait", "text": text}) for at, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, begin, count, seed in (("train", 0, 60, 3), ("test", 20, 20, 4)):
        asked = [json.dumps({"id": f"{split}{at}", "text": text}) for at, text in enumerate(queries(count, seed=seed))]
        (folder / f"queries_{split}.jsonl").write_text("\n".join(asked) + "\n", encoding="utf-8")
        qrels = [f"{split}{at}\td{begin + at % 10}\t1" for at in range(count)]
        (folder / f"qrels_{split}.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")
    listed = [f"test{at}\td{doc}" for at in range(20) for doc in (40 + at, 20 + at % 10, 39)]
    (folder / "bm25_test.tsv").write_text("query-id\tcorpus-id\n" + "\n".join(listed) + "\n", encoding="utf-8")


def write_recipe(folder: Path, encoder_directory: Path, **changes: Any) -> Path:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    write_lists(data / "train.jsonl", 300, seed=0)
    write_lists(data / "test.jsonl", 60, seed=1)
    write_corpus(data)

    def asked(split: str, **more: str) -> dict[str, str]:
        return {"queries": str(data / f"queries_{split}.jsonl"), "qrels": str(data / f"qrels_{split}.tsv"), **more}

    recipe = {
        "schema": 1,
        "name": "toy-rank",
        "task": "rank",
        "data": {
            "sets": [
                {"name": "lists", "train": str(data / "train.jsonl"), "tests": {"lists": str(data / "test.jsonl")}},
                {
                    "name": "paragraphs",
                    "corpus": str(data / "corpus.jsonl"),
                    "train": asked("train"),
                    "tests": {"paragraphs": asked("test", candidates=str(data / "bm25_test.tsv"))},
                    "depth": 5,
                    "licence": "made here",
                },
            ],
            "dev": {"cut": 0.1},
            "gate": {"cut": 0.2},
        },
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
        "gates": {"retention": 0.9, "beats": ["given", "bm25", "bi-encoder"], "bytes": 1_000_000},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder_directory: Path) -> Path:
    """A folder with recipe.yaml, log.txt, runs/ and store/, in which `toy-rank@1` is published; read only."""
    folder = tmp_path_factory.mktemp("rank")
    log = io.StringIO()
    recipe = read_recipe(write_recipe(folder, encoder_directory))
    cache = StepCache(folder / "runs")
    refresh(recipe, store=folder / "store", cache=cache, seeds=2, reporter=Reporter(log))
    (folder / "log.txt").write_text(log.getvalue(), encoding="utf-8")
    return folder


def test_the_student_ranks_as_it_was_taught(made: Path) -> None:
    bundle = Store(made / "store").open("toy-rank", 1)
    assert (bundle.manifest.task, bundle.manifest.pairs, bundle.manifest.exits[-1].output) == ("rank", "joint", "score")
    assert bundle.manifest.quality is not None
    found = bundle.manifest.quality.by_precision["int8"][0].metrics
    assert found["lists.ndcg@10"] > 0.95
    assert found["paragraphs.map_retention"] > 0.95
    for precision in ("fp32", "int8"):
        student = Student(bundle, precision=precision)
        student.check_golden()
        texts = ["my card is late again", "my refund is late again"]
        poor, good = student.all_exits(student.encoder.encode([("where is it", text) for text in texts]))[-1]
        assert good > poor


def test_the_card_says_what_was_measured(made: Path) -> None:
    bundle = Store(made / "store").open("toy-rank", 1)
    card = (bundle.path / "card.md").read_text(encoding="utf-8")
    for said in ("### lists", "### paragraphs", "bi-encoder", "bm25", "given", "Other seeds", "made here", "retention"):
        assert said in card
    assert seeds_told(card, "toy-rank") == 2, "seeds, not results"
    assert (bundle.path / "card" / "quality.png").is_file()
    assert str(made) not in card
    roles = {source.role for source in bundle.manifest.provenance.data}
    assert {"train, lists", "corpus, paragraphs", "gate queries"} <= roles


def test_what_happened_is_told(made: Path) -> None:
    log = (made / "log.txt").read_text(encoding="utf-8")
    for said in ("data: queries: train", "have no relevant passage", "gate: retention of map, int8", "compress: int8"):
        assert said in log


def test_a_second_run_makes_nothing_anew(made: Path) -> None:
    cache = StepCache(made / "runs")
    recipe = read_recipe(made / "recipe.yaml")
    published = refresh(recipe, store=made / "store", cache=cache, seeds=2, reporter=Reporter(io.StringIO()))
    assert (published.version, published.new) == (1, False)
    assert all(receipt.cached for receipt in cache.receipts)


def test_a_dry_run_says_what_it_would_cost(made: Path, tmp_path: Path) -> None:
    log = io.StringIO()
    check(read_recipe(made / "recipe.yaml"), StepCache(tmp_path / "runs"), Reporter(log))
    assert "cost: teacher, training: " in log.getvalue()
    assert "cost: teacher, scores for the student: " in log.getvalue()
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]


def test_a_gate_that_is_not_met_publishes_nothing(made: Path, tmp_path: Path, encoder_directory: Path) -> None:
    recipe = read_recipe(made / "recipe.yaml", overrides=("gates.bytes=1000",))
    with pytest.raises(GateFailed, match="toy-rank: nothing was published: bytes: "):
        refresh(
            recipe, store=tmp_path / "store", cache=StepCache(made / "runs"), seeds=1, reporter=Reporter(io.StringIO())
        )
    assert Store(tmp_path / "store").students() == []


def test_a_classifier_is_no_ranking_teacher(made: Path, tmp_path: Path, classifier_directory: Path) -> None:
    recipe = read_recipe(
        made / "recipe.yaml",
        overrides=(f"teacher={{from: {classifier_directory}, max_tokens: 32}}", "gates.beats=[]"),
    )
    with pytest.raises(TeacherInvalid, match="one label, not 2"):
        refresh(
            recipe, store=tmp_path / "s", cache=StepCache(tmp_path / "r"), seeds=1, reporter=Reporter(io.StringIO())
        )


@pytest.mark.parametrize(
    ("override", "error", "said"),
    [
        ("data.gate.cut=0.0001", DataInvalid, "data.gate: holds no query with a relevant passage"),
        ("compress=[{int8: qat}]", RecipeInvalid, "compress: qat is for classify students"),
        ("student.heads=4", RecipeInvalid, "student.heads: 4, the teacher's layers have 2"),
    ],
)
def test_what_cannot_work_is_refused(
    made: Path, tmp_path: Path, override: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        recipe = read_recipe(made / "recipe.yaml", overrides=(override,))
        refresh(recipe, store=tmp_path / "s", cache=StepCache(made / "runs"), seeds=1, reporter=Reporter(io.StringIO()))
