"""What measures a student takes pairs as it takes single texts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.evaluate import command as evaluate
from models.evaluate.exits import Risks
from models.evaluate.resplits import ExitSettings, Resampling, resplits
from models.evaluate.scores import exit_logits
from models.evaluate.speed import frontier, student_speed
from service.bundle.load import load_bundle
from service.runtime.student import Student

WORDS = ("bad", "awful", "okay", "usual", "good", "great", "the", "film", "was", "not")


def drawn(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Pairs of texts of 1 to 30 words each."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 31, (count, 2))
    return [(" ".join(draw.choice(WORDS, first)), " ".join(draw.choice(WORDS, second))) for first, second in lengths]


PAIRS = drawn(60, seed=2)


@pytest.fixture(scope="module")
def pairs_bundle(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Path:
    """The toy classifier of pairs; tests only read it."""
    return build_bundle(tmp_path_factory.mktemp("pairs") / "toy", pairs="joint")


def evaluated(bundle: Path, folder: Path, rows: Sequence[dict[str, str]]) -> Any:
    """The verb's exit status, its words, and its measurements."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    app = typer.Typer()
    app.command()(evaluate.command)
    out = folder / "out.json"
    arguments = [bundle, folder / "rows.jsonl", "--json", out, "--precision", "int8"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done, json.loads(out.read_text()) if out.exists() else None


def test_evaluate_measures_pairs(pairs_bundle: Path, tmp_path: Path) -> None:
    student = Student(load_bundle(pairs_bundle))
    answers = [student.run([item], student.policy("never"))[0].raw.argmax() for item in student.encoder.encode(PAIRS)]
    rows = [
        {"text": first, "text_pair": second, "label": student.manifest.labels[answer]}
        for (first, second), answer in zip(PAIRS, answers, strict=True)
    ]
    done, (measured,) = evaluated(pairs_bundle, tmp_path, rows)
    assert done.exit_code == 0, done.output
    full = next(setting for setting in measured["settings"] if setting["risk"] is None)
    assert (measured["rows"], full["accuracy"]) == (len(rows), 1.0)
    assert "risk 0.05" in done.output


def test_evaluate_refuses_single_texts(pairs_bundle: Path, tmp_path: Path) -> None:
    done, measured = evaluated(pairs_bundle, tmp_path, [{"text": "a film", "label": "neutral"}])
    assert (done.exit_code, measured) == (2, None)
    assert "rows.jsonl:1: text_pair: student toy takes pairs" in done.stderr


def test_speed_and_frontier_run_pairs(pairs_bundle: Path) -> None:
    student = Student(load_bundle(pairs_bundle))
    names = [timing.contender for timing in frontier(student, PAIRS)]
    assert names == ["exit early", "exit full", "risk 0.01", "risk 0.05"]
    assert all(timing.rows > 0 for timing in student_speed(student, PAIRS, most_rows=16))


def test_exits_are_drawn_again_on_pairs(pairs_bundle: Path) -> None:
    student = Student(load_bundle(pairs_bundle))
    pool, test = (exit_logits(student, student.encoder.encode(pairs)) for pairs in (drawn(300, seed=8), PAIRS))
    settings = ExitSettings(
        depths=tuple(leave.depth for leave in student.manifest.exits),
        risks=Risks((0.2, 0.4), 0.05, favoured=0.4),
        confidence="max_probability",
        layers=(0, 1),
    )
    found = resplits(pool, test, settings=settings, resampling=Resampling(rows_a=100, rows_b=200, runs=4))
    assert [summary.risk for summary in found] == [0.2, 0.4]
