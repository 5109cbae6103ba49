"""What is timed, on which rows, in which order; never how long it took."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.errors import DataInvalid
from models.evaluate import speed_command
from models.evaluate.scale import encoder_of
from models.evaluate.speed import (
    Contender,
    SpeedReport,
    Timing,
    frontier,
    machine_name,
    measure,
    pinned,
    student_contenders,
    student_speed,
)
from models.evaluate.tables import speed_table
from models.students.encoder import EncoderConfig
from service.runtime.student import Student


class Recorder:
    """Notes the ids of every batch it is given, and by whom."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[list[int]]]] = []

    def contender(self, name: str, student: Student, *, stride: int = 1) -> Contender:
        """A contender that only records."""
        return Contender(name, student.encoder, lambda feeds: self._note(name, feeds), stride)

    def _note(self, name: str, feeds: Mapping[str, Any]) -> None:
        self.calls.append((name, feeds["input_ids"].tolist()))


def test_all_sides_run_the_same_batches_interleaved(student: Student, texts: tuple[str, ...]) -> None:
    recorder = Recorder()
    sides = [recorder.contender(name, student) for name in ("a", "b")]
    timings = measure(sides, texts, order_by=student.encoder, repeats=3, modes=("ids",), batch_sizes=(32,))
    batches = -(-len(texts) // 32)
    by_side = {name: [ids for who, ids in recorder.calls if who == name] for name in ("a", "b")}
    assert by_side["a"] == by_side["b"]
    assert len(by_side["a"]) == (1 + 3) * batches
    turns = [recorder.calls[i][0] for i in range(0, len(recorder.calls), batches)]
    assert turns == ["a", "b"] * 4
    lengths = [len(batch[0]) for batch in by_side["a"][:batches]]
    assert lengths == sorted(lengths)
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert {timing.rows for timing in timings} == {len(texts)}


def test_batch_one_runs_every_kth_row_alone(student: Student, texts: tuple[str, ...]) -> None:
    recorder = Recorder()
    (timing,) = measure(
        [recorder.contender("a", student)],
        texts,
        order_by=student.encoder,
        repeats=1,
        single_rows=50,
        modes=("ids",),
        batch_sizes=(1,),
    )
    assert timing.rows == 50
    assert all(len(ids) == 1 for _, ids in recorder.calls)
    assert recorder.calls[1][1][0] == student.encoder.encode([texts[4]])[0].input_ids.tolist()


def test_a_stride_runs_fewer_batches(student: Student, texts: tuple[str, ...]) -> None:
    recorder = Recorder()
    sides = [recorder.contender("all", student), recorder.contender("some", student, stride=3)]
    timings = measure(sides, texts, order_by=student.encoder, repeats=1, modes=("texts",), batch_sizes=(32,))
    assert timings[0].rows == 200
    assert timings[1].rows == 32 * 2 + 8


def test_every_mode_is_timed(student: Student, texts: tuple[str, ...]) -> None:
    sides = student_contenders(student, (0.01, 0.05))
    timings = measure(sides, texts[:40], order_by=student.encoder, repeats=2)
    assert len(timings) == 3 * 4
    assert {(timing.mode, timing.batch_items) for timing in timings} == {
        ("ids", 32), ("ids", 1), ("texts", 32), ("texts", 1),
    }  # fmt: skip
    assert [side.name for side in sides] == ["toy int8, risk 0.01", "toy int8, risk 0.05", "toy int8, full depth"]


def test_a_risk_that_is_not_certified_is_refused(student: Student) -> None:
    with pytest.raises(DataInvalid, match=r"no operating point of risk 0\.03"):
        student_contenders(student, (0.03,))


def test_figures_come_from_the_median() -> None:
    timing = Timing("a", "ids", 32, 1000, (0.5, 2.0, 1.0))
    assert timing.texts_per_s == 1000
    assert timing.ms_per_text == 1.0
    assert timing.spread == 1.5
    slow = Timing("b", "ids", 32, 500, (1.0, 1.0, 1.0))
    report = SpeedReport("here", 0, 3, (timing, slow))
    assert report.ratio("a", "b", mode="ids", batch_items=32) == 2.0
    with pytest.raises(KeyError):
        report.ratio("a", "c", mode="ids", batch_items=32)
    assert "| a | ids | 32 | 1,000 | 1,000 | 1.0000 | 150% |" in speed_table([timing])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")
def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(None) as core:
        assert os.sched_getaffinity(0) == {core} == {max(before)}
    with pinned(min(before)) as core:
        assert core == min(before)
    assert os.sched_getaffinity(0) == before


def test_the_quick_look_and_the_frontier_name_what_they_time(student: Student, texts: tuple[str, ...]) -> None:
    quick = student_speed(student, texts, most_rows=20)
    assert {timing.contender for timing in quick} == {"toy int8, risk 0.05", "toy int8, full depth"}
    points = frontier(student, texts, most_rows=20)
    assert [timing.contender for timing in points] == ["exit early", "exit full", "risk 0.01", "risk 0.05"]


def test_the_machine_has_a_name() -> None:
    assert "ONNX Runtime" in machine_name()


def test_the_yardstick_encoder_runs_padded_batches(tmp_path: Path) -> None:
    config = EncoderConfig(
        vocabulary=50, width=2, layers=1, hidden=16, heads=2, feed_forward=32, exits=(1,), max_tokens=16
    )
    run = encoder_of(config, tmp_path)
    ids = np.ones((3, 5), dtype=np.int64)
    answer: Any = run({"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids})
    assert answer["logits"].shape == (3, 2)


def test_the_command_compares_with_the_teacher(
    toy_bundle: Path, tmp_path: Path, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "speed.json"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:40]))
    monkeypatch.setattr(speed_command, "bert_base_size", lambda _: lambda feeds: feeds)
    app = typer.Typer()
    app.command()(speed_command.command)
    arguments = [str(toy_bundle), str(toy_bundle), str(data)]
    result = CliRunner().invoke(app, [*arguments, "--risk", "0.01", "--json", str(out)])
    assert result.exit_code == 0
    assert "| toy int8, risk 0.01 |" in result.stdout
    assert "| teacher fp32 | 1.0 | 1.0 | 1.0 | 1.0 |" in result.stdout
    assert "12x768, random weights" in result.stdout
    assert {timing["contender"] for timing in json.loads(out.read_text())["timings"]} >= {"teacher fp32"}
    refused = CliRunner().invoke(app, [*arguments, "--risk", "0.3"])
    assert refused.exit_code == 2
    assert "no operating point of risk 0.3" in refused.stderr


def test_a_student_of_one_exit_is_timed_at_full_depth_alone(
    build_bundle: Callable[..., Path], tmp_path: Path, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bundle = tmp_path / "rows.jsonl", build_bundle(tmp_path / "one", task="embed")
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:20]))
    monkeypatch.setattr(speed_command, "bert_base_size", lambda _: lambda feeds: feeds)
    app = typer.Typer()
    app.command()(speed_command.command)
    result = CliRunner().invoke(app, [str(bundle), str(bundle), str(data)])
    assert result.exit_code == 0, result.stderr
    assert "full depth | ids | 32 |" in result.stdout
    assert "risk" not in result.stdout
    assert "for the student" in result.stdout


def test_each_side_may_run_on_a_backend_of_its_own(
    toy_bundle: Path, tmp_path: Path, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, openvino: str
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:20]))
    monkeypatch.setattr(speed_command, "bert_base_size", lambda _: lambda feeds: feeds)
    app = typer.Typer()
    app.command()(speed_command.command)
    arguments = [str(toy_bundle), str(toy_bundle), str(data)]
    both = CliRunner().invoke(app, [*arguments, "--risk", "0.01", "--teacher-backend", openvino])
    assert both.exit_code == 0, both.stderr
    assert "OpenVINO" in both.stdout.splitlines()[0]
    assert "| toy int8, risk 0.01 |" in both.stdout
    assert "| teacher fp32 on openvino | 1.0 | 1.0 | 1.0 | 1.0 |" in both.stdout
    uncertified = CliRunner().invoke(app, [*arguments, "--risk", "0.01", "--backend", openvino])
    assert uncertified.exit_code == 2
    assert "toy int8 on openvino: no operating point of risk 0.01" in uncertified.stderr
    unknown = CliRunner().invoke(app, [*arguments, "--teacher-backend", "abacus"])
    assert unknown.exit_code == 2
    assert "--teacher-backend: " in unknown.stderr
