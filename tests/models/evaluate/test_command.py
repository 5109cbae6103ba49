"""The verb: its tables, its JSON, and one clear line with exit status 2 for everything a user can get wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from models.evaluate.command import command

LABELLED = [("good film", "positive"), ("it was awful", "negative"), ("the usual", "neutral"), ("great", "positive")]


def run(arguments: Sequence[object]) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in LABELLED))
    return path


def test_a_student_of_the_store_is_measured_in_every_precision(store_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run(["toy", data, "--store", store_dir, "--json", out])
    assert result.exit_code == 0
    assert "toy fp32 on onnxruntime: 4 rows" in result.stdout
    assert "toy int8 on onnxruntime: 4 rows" in result.stdout
    assert "| risk 0.05 |" in result.stdout
    measured = json.loads(out.read_text())
    assert [each["precision"] for each in measured] == ["fp32", "int8"]
    assert measured[0]["settings"][0]["risk"] is None
    assert 0 <= measured[0]["settings"][0]["accuracy"] <= 1


def test_one_precision_of_a_version(store_dir: Path, data: Path) -> None:
    result = run(["toy@1", data, "--store", store_dir, "--precision", "fp32"])
    assert result.exit_code == 0
    assert "int8" not in result.stdout


def test_a_bundle_by_its_folder_and_unlabelled_rows(toy_bundle: Path, tmp_path: Path) -> None:
    bare = tmp_path / "rows.csv"
    bare.write_text("text\ngood film\nnot my card\n")
    result = run([toy_bundle, bare])
    assert result.exit_code == 0
    assert "| full depth | – |" in result.stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "fine", "label": "superb"}', "'superb' is not a label of student toy"),
        ('{"text": "fine"}', "label: missing"),
        ('{"text": "fine", "label": ', "rows.jsonl:5"),
        ('{"text": "a", "text_pair": "b", "label": "positive"}', "rows.jsonl:5"),
    ],
    ids=["unknown label", "label missing", "not JSON", "a pair"],
)
def test_a_bad_row_is_one_line_with_file_and_line(store_dir: Path, data: Path, line: str, says: str) -> None:
    with data.open("a") as opened:
        opened.write(line + "\n")
    result = run(["toy", data, "--store", store_dir])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "rows.jsonl:5" in result.stderr
    assert says in result.stderr


def test_pairs_for_a_student_that_takes_none(store_dir: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"text": "a", "text_pair": "b", "label": "positive"}\n')
    result = run(["toy", pairs, "--store", store_dir])
    assert result.exit_code == 2
    assert "takes no pairs" in result.stderr


@pytest.mark.parametrize(
    ("student", "says"), [("absent", "absent"), ("toy@9", "9"), ("toy-embed", "its task is embed, not classify")]
)
def test_a_student_that_cannot_be_measured(store_dir: Path, data: Path, student: str, says: str) -> None:
    result = run([student, data, "--store", store_dir])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_a_precision_that_the_student_does_not_have(store_dir: Path, data: Path) -> None:
    result = run(["toy", data, "--store", store_dir, "--precision", "int4"])
    assert result.exit_code == 2
    assert "int4" in result.stderr


@pytest.mark.parametrize("backend", ["abacus", "auto"])
def test_a_backend_that_cannot_measure(store_dir: Path, data: Path, backend: str) -> None:
    result = run(["toy", data, "--store", store_dir, "--backend", backend])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --backend: ")
    assert backend in result.stderr


def test_another_backend_is_measured_under_its_name(store_dir: Path, data: Path, openvino: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run(["toy", data, "--store", store_dir, "--backend", openvino, "--precision", "int8", "--json", out])
    assert result.exit_code == 0, result.stderr
    assert "toy int8 on openvino: 4 rows" in result.stdout
    assert "risk" not in result.stdout.split("| setting |")[1]
    assert json.loads(out.read_text())[0]["backend"] == "openvino"


def test_a_missing_data_file(store_dir: Path, tmp_path: Path) -> None:
    result = run(["toy", tmp_path / "none.jsonl", "--store", store_dir])
    assert result.exit_code == 2
    assert "none.jsonl" in result.stderr


def test_a_broken_bundle_is_named(store_dir: Path, data: Path) -> None:
    graph = next((store_dir / "toy" / "1" / "stages").iterdir())
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    result = run(["toy", data, "--store", store_dir])
    assert result.exit_code == 2
    assert graph.name in result.stderr


def test_json_that_cannot_be_written(store_dir: Path, data: Path, tmp_path: Path) -> None:
    result = run(["toy", data, "--store", store_dir, "--json", tmp_path / "no" / "out.json"])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
