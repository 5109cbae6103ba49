"""The classify job with a student that reads the two texts of a pair apart: refreshed, measured, served, refused."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.errors import RecipeInvalid
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import refresh, start
from models.refresh.progress import Reporter
from service.api.app import create_app
from service.bundle.load import Bundle
from service.bundle.sources import JOINED
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

WORDS = ["card", "money", "sent", "where", "is", "my", "the", "late", "again", "good", "bad", "film", "wait"]
STUDENT = {
    "architecture": "siamese",
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "feed_forward": 16,
    "head_width": 16,
    "vector_width": 12,
    "max_tokens": 16,
    "dropout": 0.0,
}
PAIRS = [("where is my card", "the late refund"), ("the late film", "where is my transfer"), ("", "good refund")]


def write_pairs(path: Path, count: int, *, seed: int) -> str:
    """Pairs whose second text says `refund` where the label is `yes`, and `transfer` elsewhere."""
    chance = random.Random(seed)
    lines: dict[str, dict[str, str]] = {}
    while len(lines) < count:
        label = chance.randrange(2)
        first, second = (chance.sample(WORDS, 3 + seed) for _ in range(2))
        row = {"text": " ".join(first), "text_pair": " ".join([*second, ("transfer", "refund")[label]])}
        lines[json.dumps(row)] = {**row, "label": ("no", "yes")[label]}
    path.write_text("".join(json.dumps(row) + "\n" for row in lines.values()))
    return str(path)


def data_in(folder: Path) -> dict[str, Any]:
    return {
        "train": write_pairs(folder / "pairs.jsonl", 700, seed=0),
        "test": write_pairs(folder / "pairs-test.jsonl", 100, seed=1),
        "dev": {"cut": 0.1},
        "calibration": {"cut": 0.1},
        "gate": {"cut": 0.1},
        "parts": "first-text",
    }


@pytest.fixture(scope="module")
def made(recipe_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store in which version 1 is in production, and what was said; read only."""
    folder = tmp_path_factory.mktemp("siamese")
    recipe = recipe_in(folder, data=data_in(folder), student=STUDENT, publish={"alias": "production"})
    said = io.StringIO()
    refresh(read_recipe(recipe), store=folder / "store", cache=StepCache(folder / "runs"), reporter=Reporter(said))
    return Store(folder / "store"), said.getvalue()


@pytest.fixture(scope="module")
def bundle(made: tuple[Store, str]) -> Bundle:
    return made[0].open("toy-intent", 1)


def test_it_is_published_as_texts_apart_with_one_exit(bundle: Bundle, made: tuple[Store, str]):
    manifest = bundle.manifest
    assert (manifest.pairs, manifest.requires, manifest.apart) == ("separate", (JOINED,), 1)
    assert [(leave.id, leave.stage, leave.depth) for leave in manifest.exits] == [("full", "01", 1.0)]
    assert (manifest.certificates, manifest.default_risk) == ((), None)
    assert all(sample.text_pair is not None for sample in bundle.golden.samples)
    assert "compress: int8 static" in made[1]
    assert "compress: float32 weights stored in 8 bits" in made[1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_answers_in_both_precisions(bundle: Bundle, precision: str):
    student = Student(bundle, precision=precision)
    outcomes = student.run(student.encoder.encode(PAIRS[:2]), student.policy("default"))
    assert [bundle.manifest.labels[outcome.raw.argmax()] for outcome in outcomes] == ["yes", "no"]


def test_card_and_quality_say_how_good_it_is(bundle: Bundle):
    card = (bundle.path / "card.md").read_text()
    assert "| retention, full depth, int8 |" in card
    assert "| company, int8 | same answer in any batch |" in card
    quality = bundle.manifest.quality
    assert quality is not None and quality.by_precision["int8"][0].metrics["accuracy"] > 0.9


async def test_the_service_answers_as_the_pass_does(made: tuple[Store, str], bundle: Bundle):
    student = Student(bundle)
    outcomes = student.run(student.encoder.encode(PAIRS), student.policy("default"))
    app = create_app(load_settings(store=made[0].root, slots=1))
    async with app.router.lifespan_context(app):
        await app.state.service.students.until(lambda: app.state.service.ready)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            response = await client.post("/v1/classify", json={"inputs": PAIRS})
            single = await client.post("/v1/classify", json={"inputs": "where is my card"})
    assert response.status_code == 200, response.text
    labels = bundle.manifest.labels
    assert [one["label"] for one in response.json()["results"]] == [labels[each.raw.argmax()] for each in outcomes]
    assert single.status_code == 422


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, r"train\.jsonl:\d+: text_pair: missing, and student\.architecture siamese takes pairs of texts"),
        ({"student": {**STUDENT, "exits": [1]}}, r"student\.exits: unknown key"),
        ({"student": {**STUDENT, "heads": 3}}, "hidden must be a multiple of heads"),
        ({"student": {**STUDENT, "attention_width": 7}}, "attention_width must be a multiple of heads"),
        ({"student": {**STUDENT, "vector_width": 0}}, r"student\.vector_width: Input should be greater than"),
        ({"student": {**STUDENT, "initialise": "teacher-layers"}}, "teacher_layers must name one teacher layer"),
        ({"compress": [{"int8": "qat"}]}, r"qat is for student\.architecture encoder, not siamese"),
        (
            {"compress": [{"prune": {"heads": 0.5}}, {"int8": "static"}]},
            r"prune is for student\.architecture encoder, not siamese",
        ),
        (
            {"distil": {"objectives": [{"hidden": {}}, {"soft_labels": {}}]}},
            "hidden and attention look at both texts, as no layer of siamese does",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    make_recipe: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], says: str
):
    with pytest.raises(RecipeInvalid, match=says):
        recipe = read_recipe(make_recipe(**{"student": STUDENT, **changes}))
        start(recipe, StepCache(tmp_path / "runs"), Reporter(io.StringIO()))
