"""The check passes for static graphs and notices answers that depend on company."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.evaluate.company import BATCH_ITEMS, CompanyCheck, check_company, command, table
from service.bundle.load import load_bundle
from service.runtime.student import Student


class Sociable(Student):
    """A student whose first stage looks at its whole batch, as dynamic int8 scales do."""

    push = 0.01

    def run_stage(
        self, stage_index: int, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """The true outputs, moved by the size of the batch and its padding."""
        written = super().run_stage(stage_index, feeds)
        items, tokens = feeds["attention_mask"].shape
        shift = np.zeros(written["logits"].shape[1], dtype=np.float32)
        shift[0] = self.push * (items + tokens)
        return written | {"logits": written["logits"] + shift}


def test_static_graphs_do_not_depend_on_company(student: Student, texts: tuple[str, ...]) -> None:
    checks = check_company(student, student.encoder.encode(texts))
    assert all(check.holds for check in checks)
    assert {check.setting for check in checks} == {"exit early", "exit full", "risk 0.05"}
    companies = {check.company for check in checks}
    assert f"in a mixed batch of {BATCH_ITEMS}" in companies
    assert "alone, padded to 32" in companies
    assert all(check.rows == 200 for check in checks)


def test_dependence_on_company_is_noticed(toy_bundle: Path, texts: tuple[str, ...]) -> None:
    sociable = Sociable(load_bundle(toy_bundle))
    checks = check_company(sociable, sociable.encoder.encode(texts))
    assert not any(check.holds for check in checks if check.setting == "exit early")
    assert max(check.worst_score for check in checks) > 0.01
    assert sum(check.flips + check.moved for check in checks) > 0
    assert sum(check.unexplained for check in checks) > 0


def test_tiny_differences_pass(toy_bundle: Path, texts: tuple[str, ...]) -> None:
    sociable = Sociable(load_bundle(toy_bundle))
    sociable.push = 1e-6
    checks = check_company(sociable, sociable.encoder.encode(texts))
    assert all(check.holds for check in checks)
    assert 0 < max(check.worst_score for check in checks) < 1e-3


def test_without_operating_points_only_the_exits_are_checked(
    tmp_path: Path, build_bundle: Callable[..., Path], texts: tuple[str, ...]
) -> None:
    bare = Student(load_bundle(build_bundle(tmp_path / "bare", certified=False)))
    checks = check_company(bare, bare.encoder.encode(texts[:20]))
    assert {check.setting for check in checks} == {"exit early", "exit full"}


@pytest.mark.parametrize(("worst", "unexplained", "holds"), [(1e-3, 0, True), (1.1e-3, 0, False), (0.0, 1, False)])
def test_a_check_holds_within_the_tolerance_and_without_unexplained_flips(
    worst: float, unexplained: int, holds: bool
) -> None:
    check = CompanyCheck("int8", "exit full", "alone", 10, worst, unexplained, 0, unexplained)
    assert check.holds is holds
    assert ("| yes |" in table([check])) is holds


def test_the_command_checks_every_precision(toy_bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "good film"}\n{"text": "it was awful"}\n')
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(toy_bundle), str(data), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0
    assert "| fp32 | exit early |" in result.stdout
    assert "| int8 | risk 0.05 |" in result.stdout
    assert (tmp_path / "out.json").read_text().startswith("[")


def test_the_command_checks_another_backend(toy_bundle: Path, tmp_path: Path, openvino: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "good film"}\n{"text": "it was awful"}\n')
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(toy_bundle), str(data), "--backend", openvino])
    assert result.exit_code == 0, result.stdout
    assert "| int8 on openvino | exit full |" in result.stdout
