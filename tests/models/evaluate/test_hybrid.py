"""Retrieval by words, by embeddings and by both."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.data.rank_sets import Ranking
from models.errors import DataInvalid
from models.evaluate.hybrid_command import command, whole_corpus
from models.evaluate.rankers import embedder_order, fused
from models.evaluate.ranking import Scored, order_of
from service.bundle.load import load_bundle
from service.runtime.student import Student

DOCUMENTS = [("a", "Films", "this film is great"), ("b", "", "my card is slow"), ("c", "", "where is it")]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A corpus, queries of which one has no answer, and judgements."""
    corpus, queries, qrels = (tmp_path / name for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"))
    corpus.write_text("".join(json.dumps({"id": i, "title": t, "text": x}) + "\n" for i, t, x in DOCUMENTS))
    queries.write_text("".join(json.dumps({"id": str(n), "text": f"slow card {n}"}) + "\n" for n in range(3)))
    qrels.write_text("0\tb\t1\n1\ta\t0\n2\tc\t1\n")
    return [corpus, queries, qrels]


def test_fusing_sums_the_reciprocal_places() -> None:
    first = Scored("words", (np.array([3.0, 2.0, 1.0], np.float32),))
    second = Scored("dense", (np.array([0.1, 0.9, 0.2], np.float32),))
    both = fused(first, second, constant=60)
    assert both.ranker == "words + dense"
    np.testing.assert_allclose(both.scores[0], [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62], rtol=1e-6)
    assert order_of(both.scores[0]).tolist() == [1, 0, 2]


def test_every_document_is_a_candidate_and_unanswered_queries_are_left_out(files: list[Path]) -> None:
    rankings = whole_corpus(*files)
    assert [each.query for each in rankings] == ["slow card 0", "slow card 2"]
    assert rankings[0].passages == ("Films. this film is great", "my card is slow", "where is it")
    assert rankings[0].grades == (0.0, 1.0, 0.0)
    files[2].write_text("1\ta\t0\n")
    with pytest.raises(DataInvalid, match="no query has a relevant document"):
        whole_corpus(*files)


def test_an_embedder_ranks_by_cosine(tmp_path: Path, build_bundle: Callable[..., Path]) -> None:
    student = Student(load_bundle(build_bundle(tmp_path / "e", task="embed")), precision="fp32")
    ranking = Ranking("good", ("good", "bad film"), (1.0, 0.0))
    (scores,) = embedder_order(student, [ranking]).scores
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores[1] < scores[0]


def test_the_command_prints_the_three(files: list[Path], tmp_path: Path, build_bundle: Callable[..., Path]) -> None:
    app = typer.Typer()
    app.command()(command)
    embedder = build_bundle(tmp_path / "e", task="embed", name="near")
    found = CliRunner().invoke(app, [str(embedder), *map(str, files), "--json", str(tmp_path / "out.json")])
    assert found.exit_code == 0, found.output
    assert "bm25 + near" in found.output
    assert [each["ranker"] for each in json.loads((tmp_path / "out.json").read_text())] == [
        "bm25",
        "near",
        "bm25 + near",
    ]
    wrong = CliRunner().invoke(app, [str(build_bundle(tmp_path / "c")), *map(str, files)])
    assert wrong.exit_code == 2
