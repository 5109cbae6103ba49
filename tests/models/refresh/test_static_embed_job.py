"""The whole job of a static embedder on toy data: trained or as it starts, a served bundle comes out."""

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
from models.refresh.embed_training import load_embedder
from models.refresh.jobs import refresh
from models.refresh.progress import Reporter
from models.students.static import StaticEmbedder
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

WORDS = "card lost stolen money sent where is my the refund wait late transfer failed again good bad film".split()  # noqa: SIM905
STATIC = {"architecture": "static", "token_width": 12, "max_tokens": 24}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_recipe(folder: Path, teacher: Path, student: dict[str, Any], **changes: Any) -> Path:
    """Texts of two to eight words, and pairs scored by how many words they share."""
    chance = random.Random(0)
    write_lines(
        folder / "texts.jsonl", [{"text": " ".join(chance.sample(WORDS, chance.randint(2, 8)))} for _ in range(300)]
    )
    for name in ("dev", "test"):
        rows: list[dict[str, Any]] = []
        for _ in range(60):
            shared = chance.randint(0, 5)
            words = chance.sample(WORDS, 10)
            pair = " ".join(words[:5]), " ".join(words[5 - shared : 10 - shared])
            rows.append({"text": pair[0], "text_pair": pair[1], "score": shared})
        write_lines(folder / f"{name}.jsonl", rows)
    document = {
        "schema": 1,
        "name": "toy-static",
        "task": "embed",
        "data": {
            "texts": [str(folder / "texts.jsonl")],
            "dev": str(folder / "dev.jsonl"),
            "test": str(folder / "test.jsonl"),
            "gate": {"cut": 0.2},
        },
        "teacher": {"from": str(teacher)},
        "student": student,
        "distil": {
            "objectives": [{"cosine": {}}, {"similarities": {}}],
            "prefixes": [{"dimensions": 8}],
            "epochs": 3,
            "batch_items": 16,
            "learning_rate": 0.003,
        },
        "compress": [{"int8": "static", "rows": 64}],
        "gates": {"cosine": 0.3, "overlap": 0.1, "retention": 0.1},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def trained_in(runs: Path) -> StaticEmbedder:
    (folder,) = (runs / "embedder").iterdir()
    student = load_embedder(folder).student
    assert isinstance(student, StaticEmbedder)
    return student


def test_a_static_embedder_is_served_in_both_precisions(tmp_path: Path, encoder_directory: Path):
    recipe = read_recipe(write_recipe(tmp_path, encoder_directory, STATIC))
    said = io.StringIO()
    refresh(recipe, store=tmp_path / "store", cache=StepCache(tmp_path / "runs"), seeds=1, reporter=Reporter(said))
    bundle = Store(tmp_path / "store").open("toy-static", 1)
    assert [(leave.id, leave.output) for leave in bundle.manifest.exits] == [("full", "embedding")]
    assert trained_in(tmp_path / "runs").config.token_width == 12
    found = []
    for precision in ("fp32", "int8"):
        student = Student(bundle, precision=precision)
        encoded = student.encoder.encode(["my card", "my card is lost", "good film", ""])
        (raw,) = student.all_exits(encoded)
        found.append(raw / np.linalg.norm(raw, axis=1, keepdims=True))
        assert raw.shape == (4, 16)
        alone = np.concatenate([student.all_exits([item])[0] for item in encoded])
        np.testing.assert_allclose(raw, alone, atol=1e-4)
    assert (found[0] * found[1]).sum(axis=1).min() > 0.99


def test_one_that_is_not_distilled_stays_as_it_starts(tmp_path: Path, encoder_directory: Path):
    recipe = read_recipe(write_recipe(tmp_path, encoder_directory, {**STATIC, "distilled": False}))
    said = io.StringIO()
    refresh(recipe, store=tmp_path / "store", cache=StepCache(tmp_path / "runs"), seeds=1, reporter=Reporter(said))
    assert "student:" not in said.getvalue()
    assert trained_in(tmp_path / "runs").tokens.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("student", "changes", "message"),
    [
        ({**STATIC, "layers": 2}, {}, "student.layers: unknown key"),
        ({**STATIC, "smoothing": 0}, {}, "student.smoothing: Input should be greater than 0"),
        ({"architecture": "bilstm"}, {}, "student: architecture must be one of encoder, static"),
        (
            STATIC,
            {"compress": [{"vocabulary": "trimmed", "min_count": 2}, {"int8": "static"}]},
            "a static student is trimmed before",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_refused(
    student: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path, encoder_directory: Path
):
    with pytest.raises(RecipeInvalid, match=message):
        read_recipe(write_recipe(tmp_path, encoder_directory, student, **changes))
