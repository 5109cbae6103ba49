"""The classify job on pairs of texts: two files of them, one sequence each, served as pairs."""

import io
import json
import random
import re
from pathlib import Path

import pytest
import yaml

from models.errors import RecipeInvalid
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import refresh, start
from models.refresh.progress import Reporter
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

WORDS = ["card", "money", "sent", "where", "is", "my", "the", "late", "again", "good", "bad", "film", "wait"]


def write_pairs(path: Path, count: int, *, seed: int, labels: tuple[str, str] = ("no", "yes")) -> str:
    """Pairs whose second text says `refund` where the label is the second one, and `transfer` elsewhere."""
    chance = random.Random(seed)
    lines: dict[str, dict[str, str]] = {}
    while len(lines) < count:
        label = chance.randrange(2)
        first, second = (chance.sample(WORDS, 3 + seed % 3) for _ in range(2))
        row = {"text": " ".join(first), "text_pair": " ".join([*second, ("transfer", "refund")[label]])}
        lines[json.dumps(row)] = {**row, "label": labels[label]}
    path.write_text("".join(json.dumps(row) + "\n" for row in lines.values()))
    return str(path)


@pytest.fixture
def recipe(make_recipe, tmp_path: Path) -> Path:
    second = write_pairs(tmp_path / "second.jsonl", 300, seed=1, labels=("different", "same"))
    tests = [write_pairs(tmp_path / f"test{seed}.jsonl", 100, seed=seed) for seed in (2, 3)]
    return make_recipe(
        data={
            "train": [
                {"file": write_pairs(tmp_path / "first.jsonl", 600, seed=0)},
                {"file": second, "labels": {"different": "no", "same": "yes"}, "licence": "another"},
            ],
            "test": [{"file": file} for file in tests],
            "dev": {"cut": 0.1},
            "calibration": {"cut": 0.25},
            "gate": {"cut": 0.1},
            "parts": "first-text",
        },
        distil={"objectives": [{"soft_labels": {}}], "augment": {"rows": 2}, "epochs": 6, "learning_rate": 0.01},
    )


def test_pairs_become_a_student_of_pairs(recipe: Path, tmp_path: Path):
    said = io.StringIO()
    cache = StepCache(tmp_path / "runs")
    published = refresh(read_recipe(recipe), store=tmp_path / "store", cache=cache, reporter=Reporter(said))
    bundle = Store(tmp_path / "store").open(published.name, published.version)
    manifest = bundle.manifest
    assert manifest.pairs == "joint"
    assert manifest.labels == ("no", "yes")
    assert [source.role for source in manifest.provenance.data][:4] == ["train 1", "train 2", "test 1", "test 2"]
    assert manifest.stages[0].inputs["token_type_ids"] == "token_type_ids"
    assert "token_type_ids" not in manifest.stages[1].inputs
    assert "pairs of texts as one sequence" in manifest.certificates[0].input_policy
    student = Student(bundle)
    pairs = [("where is my card", "the late refund"), ("the late refund", "where is my transfer")]
    answers = [outcome.raw.argmax() for outcome in student.run(student.encoder.encode(pairs), student.policy("never"))]
    assert [manifest.labels[answer] for answer in answers] == ["yes", "no"]
    card = (bundle.path / "card.md").read_text()
    assert "test2.jsonl" in card
    assert "test3.jsonl" in card


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student": {"architecture": "ngram", "max_tokens": 16}}, "student.architecture ngram takes single texts"),
        ({"compress": [{"int8": "qat"}]}, "compress qat are for single texts"),
    ],
)
def test_what_cannot_take_pairs_is_refused(recipe: Path, tmp_path: Path, changes: dict, says: str):
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **changes}))
    with pytest.raises(RecipeInvalid, match=says) as caught:
        start(read_recipe(recipe), StepCache(tmp_path / "runs"), Reporter(io.StringIO()))
    assert re.search(r"first\.jsonl:\d+: text_pair: ", str(caught.value))
