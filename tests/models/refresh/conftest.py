"""A recipe that a refresh carries out in seconds: three labels that one word decides, a two-layer teacher."""

import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import refresh
from models.refresh.progress import Reporter
from service.runtime import session
from service.runtime.backends.onnxruntime import OnnxRuntimeSession
from service.store.disk import Disk

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


def write_recipe(folder: Path, encoder_directory: Path, **changes: object) -> Path:
    """Write data and recipe into `folder`, top-level keys replaced as given; returns the recipe's path."""
    data = folder / "data"
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
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def recipe_in(encoder_directory: Path) -> Callable[..., Path]:
    """A function that writes data and recipe into a folder, top-level keys replaced as given."""
    return lambda folder, **changes: write_recipe(folder, encoder_directory, **changes)


@pytest.fixture
def make_recipe(tmp_path: Path, encoder_directory: Path) -> Callable[..., Path]:
    """A function that writes data and recipe, top-level keys replaced as given, and returns the recipe's path."""
    return lambda **changes: write_recipe(tmp_path, encoder_directory, **changes)


@pytest.fixture(scope="session")
def refreshed(tmp_path_factory: pytest.TempPathFactory, encoder_directory: Path) -> Path:
    """A folder with recipe.yaml, data/ and store/, in which `toy-intent@1` is certified on ONNX Runtime; read only."""
    folder = tmp_path_factory.mktemp("refreshed")
    recipe = read_recipe(write_recipe(folder, encoder_directory))
    refresh(recipe, store=folder / "store", cache=StepCache(folder / "runs"), reporter=Reporter(io.StringIO()))
    return folder


class Louder(OnnxRuntimeSession):
    """A backend that computes other numbers: every float a ten-thousandth larger."""

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs, larger."""
        return {name: (value * 1.0001).astype(np.float32) for name, value in super().run(feeds, outputs).items()}


class Wrong(OnnxRuntimeSession):
    """A backend that computes wrong numbers."""

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs, back to front."""
        return {name: value[..., ::-1].copy() for name, value in super().run(feeds, outputs).items()}


@pytest.fixture
def louder(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that computes other numbers."""
    monkeypatch.setitem(session.BACKENDS, "louder", session.Backend(Louder, lambda: None))
    return "louder"


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that computes wrong numbers."""
    monkeypatch.setitem(session.BACKENDS, "wrong", session.Backend(Wrong, lambda: None))
    return "wrong"


class KilledDisk(Disk):
    """Ends its user at the `fatal`-th step, before it is done, or after a write left half a file."""

    class Killed(BaseException):
        """Not an error that anybody catches."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.steps = fatal, 0

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.fatal:
            raise self.Killed

    def make_directory(self, path: Path) -> None:
        self._step()
        super().make_directory(path)

    def write(self, target: Path, raw: bytes) -> None:
        try:
            self._step()
        except self.Killed:
            target.write_bytes(raw[: len(raw) // 2])
            raise
        super().write(target, raw)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)


class FullDisk(Disk):
    """Takes no file."""

    def write(self, target: Path, raw: bytes) -> None:
        raise OSError(28, "No space left on device", str(target))


@pytest.fixture
def killed_disk() -> type[KilledDisk]:
    """`killed_disk(fatal)`: a disk whose user is killed at that step, by `killed_disk.Killed`."""
    return KilledDisk


@pytest.fixture
def full_disk() -> type[FullDisk]:
    """`full_disk()`: a disk that takes no file."""
    return FullDisk
