"""Dynamic scales let answers depend on their company; constant ones do not, and the table says by how much."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.errors import DataInvalid
from models.evaluate.company_command import Likeness, command, dynamic_twin, likeness, table
from service.bundle.load import load_bundle
from service.runtime.student import Student


def test_a_dynamic_twin_answers_otherwise_in_company(
    toy_bundle: Path, texts: tuple[str, ...], tmp_path: Path, student: Student
) -> None:
    twin = Student(dynamic_twin(load_bundle(toy_bundle), tmp_path))
    assert (twin.precision, twin.policy().risk_applied) == ("int8", None)
    encoded = twin.encoder.encode(texts)
    fixed, moving = likeness(student, encoded, graphs="int8"), likeness(twin, encoded, graphs="dynamic")
    assert fixed.lowest > 1 - 1e-6
    assert (fixed.below, fixed.flips) == (0.0, 0)
    assert moving.lowest < fixed.lowest
    assert moving.rows == 200


def test_the_twin_is_near_the_student_that_it_was_made_from(
    toy_bundle: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    exact = Student(load_bundle(toy_bundle), precision="fp32")
    twin = Student(dynamic_twin(load_bundle(toy_bundle), tmp_path))
    encoded = exact.encoder.encode(texts[:50])
    same = [exact.all_exits([one])[-1].argmax() == twin.all_exits([one])[-1].argmax() for one in encoded]
    assert np.mean(same) > 0.9


def test_without_fp32_graphs_there_is_nothing_to_quantise(tmp_path: Path, build_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(build_bundle(tmp_path / "toy", precisions=("int8",)))
    with pytest.raises(DataInvalid, match="student toy: it has no fp32 graphs"):
        dynamic_twin(bundle, tmp_path)


def test_the_table_has_a_line_for_each_kind_of_graphs() -> None:
    text = table([Likeness("int8", 1000, 32, 0.99, 0.999, 0.25, 3)])
    assert text.splitlines()[2] == "| int8 | 1,000 | 0.990000 | 0.999000 | 25.0% | 3 |"


def test_the_command_puts_all_graphs_side_by_side(toy_bundle: Path, tmp_path: Path, texts: tuple[str, ...]) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:60]))
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(toy_bundle), str(data), "--most-rows", "30", "--json", str(out)])
    assert result.exit_code == 0, result.stderr
    assert "toy on onnxruntime: each text alone and in a mixed batch of 32" in result.stdout
    assert [each["graphs"] for each in json.loads(out.read_text())] == ["fp32", "int8", "int8, dynamic scales"]
    assert "| int8, dynamic scales | 30 |" in result.stdout
