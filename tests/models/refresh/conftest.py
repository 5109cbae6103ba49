"""A recipe that a refresh carries out in seconds: three labels that one word decides, a two-layer teacher."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

FILLERS = [
    "card",
    "money",
    "sent",
    "where",
    "is",
    "my",
    "the",
    "late",
    "again",
    "good",
    "bad",
    "film",
    "wait",
    "failed",
]
DECIDING = {"lost_card": "lost", "refund": "refund", "transfer": "transfer"}


def write_rows(path: Path, count: int, *, seed: int) -> None:
    """`count` distinct rows; rows of different seeds are distinct too, since the seed's words are in their middle."""
    chance = random.Random(seed)
    lines: dict[str, str] = {}
    while len(lines) < count:
        label, word = chance.choice(list(DECIDING.items()))
        words = [*chance.sample(FILLERS, 3), word, *chance.sample(FILLERS, 2 + seed % 2)]
        lines[" ".join(words)] = label
    rows = [json.dumps({"text": text, "label": label}) for text, label in lines.items()]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture
def make_recipe(tmp_path: Path, encoder_directory: Path) -> Callable[..., Path]:
    """A function that writes data and recipe, top-level keys replaced as given, and returns the recipe's path."""

    def make(**changes: object) -> Path:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        write_rows(data / "train.jsonl", 900, seed=0)
        write_rows(data / "test.jsonl", 200, seed=1)
        recipe = {
            "schema": 1,
            "name": "toy-intent",
            "task": "classify",
            "data": {
                "train": str(data / "train.jsonl"),
                "test": str(data / "test.jsonl"),
                "dev": {"cut": 0.1},
                "calibration": {"cut": 0.25},
                "gate": {"cut": 0.1},
                "licence": "made here",
            },
            "teacher": {
                "from": str(encoder_directory),
                "fine_tune": {"epochs": 12, "learning_rate": 0.01, "max_tokens": 16},
            },
            "student": {
                "layers": 1,
                "hidden": 16,
                "heads": 2,
                "feed_forward": 16,
                "exits": [0, 1],
                "max_tokens": 16,
                "head_width": 16,
                "dropout": 0.0,
            },
            "distil": {"objectives": [{"soft_labels": {}}], "augment": {"rows": 1}, "epochs": 6, "learning_rate": 0.01},
            "compress": [{"int8": "static", "rows": 64}],
            "exits": {"risks": [0.05, 0.1], "default_risk": 0.1},
            "gates": {"retention": 0.9, "bytes": 1_000_000},
            "publish": {"alias": "canary"},
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return make
