"""Re-ranking timed: cold, with known passages, and by the teacher."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from models.errors import DataInvalid
from models.evaluate.rerank_command import asked_of, command, table_of
from models.evaluate.rerank_speed import Asked, known_us, rerank_speed
from service.bundle.load import load_bundle
from service.runtime.student import Student

ASKED = [Asked("is it good", ("this film is great", "bad", "it was slow")), Asked("my card", ("where is it", ""))]


@pytest.fixture
def sides(tmp_path: Path, build_bundle: Callable[..., Path]) -> tuple[Path, Path]:
    """A toy split ranker and a toy cross-encoder."""
    split = build_bundle(tmp_path / "split", task="rank", pairs="separate", joined=True, name="split")
    return split, build_bundle(tmp_path / "judge", task="rank", pairs="joint", name="judge")


def _ticks(step: Iterator[float]) -> Callable[[], float]:
    return lambda: next(step)


def test_every_side_is_timed_in_turn(sides: tuple[Path, Path]) -> None:
    student, teacher = (Student(load_bundle(path), precision="fp32") for path in sides)
    # each run takes as many seconds as its place among the three sides says
    clock = iter(tick for repeat in range(2) for side in range(3) for tick in (0.0, 1.0 + side))
    report = rerank_speed(student, [teacher], ASKED, repeats=2, clock=_ticks(clock))
    assert [side.contender for side in report.sides] == ["teacher fp32", "cold fp32", "warm fp32"]
    assert [side.seconds for side in report.sides] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert report.ratio("warm fp32", "teacher fp32") == pytest.approx(1 / 3)
    assert report.sides[0].ms_a_query == 500
    assert report.bytes_a_token == 8, "one byte a channel"
    assert report.tokens_a_passage == pytest.approx((6 + 3 + 5 + 5 + 2) / 5)
    assert "| warm fp32 | 1500.00 | 0.3 |" in table_of(report)


def test_nothing_to_rank_and_a_student_that_keeps_nothing_are_refused(sides: tuple[Path, Path]) -> None:
    student, teacher = (Student(load_bundle(path), precision="fp32") for path in sides)
    with pytest.raises(DataInvalid, match="no query with candidates"):
        rerank_speed(student, [teacher], [Asked("good", ())])
    with pytest.raises(DataInvalid, match="judge reads a pair as one sequence"):
        rerank_speed(teacher, [teacher], ASKED)


def test_a_pair_whose_passage_is_known_is_timed_by_itself(sides: tuple[Path, Path]) -> None:
    student = Student(load_bundle(sides[0]), precision="fp32")
    pairs = [(each.query, passage) for each in ASKED for passage in each.passages]
    # cold and warm in turn, one repeat: the warm one takes 10 s
    for most, counted in ((5, 5), (2, 3)):
        clock = iter([0.0, 99.0, 0.0, 10.0])
        found = known_us(student, pairs, most_pairs=most, repeats=1, clock=_ticks(clock))
        assert found == pytest.approx(10e6 / counted), "every second query leaves the first one's three pairs"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A corpus and queries."""
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    documents = [("a", "Films", "this film is great"), ("b", "", "my card is slow"), ("c", "", "where is it")]
    corpus.write_text("".join(json.dumps({"id": i, "title": t, "text": x}) + "\n" for i, t, x in documents))
    queries.write_text("".join(json.dumps({"id": str(n), "text": f"slow card {n}"}) + "\n" for n in range(6)))
    return corpus, queries


def test_candidates_are_the_best_of_a_bm25(files: tuple[Path, Path]) -> None:
    asked = asked_of(*files, candidates=2, most_queries=3)
    assert [each.query for each in asked] == ["slow card 0", "slow card 2", "slow card 4"]
    assert asked[0].passages[0] == "my card is slow"
    assert len(asked[0].passages) == 2
    assert asked_of(*files, candidates=9, most_queries=1)[0].passages[1] == "Films. this film is great"


def test_the_command_prints_a_table(sides: tuple[Path, Path], files: tuple[Path, Path]) -> None:
    app = typer.Typer()
    app.command()(command)
    found = CliRunner().invoke(app, [*map(str, sides), *map(str, files), "--candidates", "3", "--most-queries", "2"])
    assert found.exit_code == 0, found.output
    assert "x teacher int8" in found.output
    assert "6 candidates of" in found.output
    missing = CliRunner().invoke(app, [*map(str, sides), "nowhere.jsonl", str(files[1])])
    assert missing.exit_code == 2
