"""The whole job with every architecture: trained, exported, certified as one pipeline, served by pass and engine."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import refresh
from models.refresh.progress import Reporter
from service.bundle.load import Bundle
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

NGRAM = {"orders": 2, "buckets": 97, "width": 8, "hidden": 16, "dropout": 0.0, "feature_dropout": 0.0}
ENCODER = {
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "feed_forward": 16,
    "exits": [0, 1],
    "max_tokens": 16,
    "head_width": 16,
    "dropout": 0.0,
}
STUDENTS = {
    "ngram": {"architecture": "ngram", "max_tokens": 16, **NGRAM},
    "cascade": {"architecture": "cascade", "ngram": NGRAM, "encoder": ENCODER},
    "bilstm": {
        "architecture": "bilstm",
        "token_width": 12,
        "width": 8,
        "head_width": 16,
        "max_tokens": 16,
        "dropout": 0.0,
    },
    "cnn": {"architecture": "cnn", "token_width": 12, "sizes": [1, 2], "filters": 12, "max_tokens": 16, "dropout": 0.1},
}


def made(recipe: Path, place: Path) -> tuple[Bundle, str]:
    said = io.StringIO()
    published = refresh(
        read_recipe(recipe), store=place / "store", cache=StepCache(place / "runs"), reporter=Reporter(said)
    )
    return Store(place / "store").open(published.name, published.version), said.getvalue()


@pytest.mark.parametrize("architecture", ["ngram", "bilstm", "cnn"])
def test_a_student_of_one_exit_has_no_certificate(architecture: str, make_recipe: Callable[..., Path], tmp_path: Path):
    bundle, said = made(make_recipe(student=STUDENTS[architecture]), tmp_path)
    manifest = bundle.manifest
    assert [(leave.id, leave.depth) for leave in manifest.exits] == [("full", 1.0)]
    assert (manifest.certificates, manifest.default_risk) == ((), None)
    assert "compress: int8 token tables" in said
    for precision in ("fp32", "int8"):
        student = Student(bundle, precision=precision)
        texts = ["where is my lost card", "the refund again", ""]
        outcomes = student.run(student.encoder.encode(texts), student.policy("default"))
        assert [manifest.labels[outcome.raw.argmax()] for outcome in outcomes[:2]] == ["lost_card", "refund"]


def test_a_cascade_is_certified_as_one_pipeline(make_recipe: Callable[..., Path], tmp_path: Path):
    bundle, _ = made(make_recipe(student=STUDENTS["cascade"]), tmp_path)
    manifest = bundle.manifest
    assert [leave.id for leave in manifest.exits] == ["ngram", "embeddings", "full"]
    assert [dict(stage.inputs) for stage in manifest.stages] == [
        {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        {"states": "01.hidden", "attention_mask": "attention_mask"},
    ]
    assert {len(certificate.points[0].thresholds) for certificate in manifest.certificates} == {2}
    student = Student(bundle)
    outcomes = student.run(
        student.encoder.encode(["where is my lost card", "the refund again"]), student.policy("default")
    )
    assert [manifest.labels[outcome.raw.argmax()] for outcome in outcomes] == ["lost_card", "refund"]
