"""`understudy evaluate` on a ranker: quality of every variant beside BM25, one line for what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from models.evaluate.command import command

ROWS = [
    {"query": "is it good", "passages": [{"text": "the film was bad", "label": 0}, {"text": "good film", "label": 1}]},
    {"query": "where is it", "passages": [{"text": "it is where", "label": 1}, {"text": "very slow", "label": 0}]},
    {"query": "how", "passages": [{"text": "fast", "label": 0}]},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_a_ranker_is_measured(
    pairs: str, data: Path, tmp_path: Path, build_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    bundle = build_bundle(tmp_path / "bundle", task="rank", pairs=pairs)
    command(str(bundle), data, json_out=tmp_path / "out.json")
    said = capsys.readouterr().out
    assert "3 queries, 2 with a relevant passage" in said
    assert all(f"| {name} |" in said for name in ("fp32", "int8", "given", "bm25"))
    assert "5 pairs" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert [each["quality"]["ranker"] for each in found] == ["fp32", "int8"]
    assert 0 < found[0]["quality"]["measures"]["mrr@10"]["value"] <= 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "q", "passages": [{"text": "x", "label": 0}]}, "no query has a relevant passage"),
        ({"query": "q", "passages": [{"text": "x"}]}, "'label' is missing"),
        ({"text": "x", "label": "a"}, "field 'query': missing"),
    ],
)
def test_what_is_no_ranking_is_one_line(
    row: dict, said: str, tmp_path: Path, build_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    bundle = build_bundle(tmp_path / "bundle", task="rank", pairs="joint")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(typer.Exit) as caught:
        command(str(bundle), tmp_path / "rows.jsonl")
    assert caught.value.exit_code == 2
    assert said in capsys.readouterr().err
