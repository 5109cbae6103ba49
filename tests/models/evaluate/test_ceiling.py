"""The in-process ceiling: every text goes round, in batches of one length, for as long as was asked."""

import io
import itertools
import json
import sys

import pytest

from models.errors import DataInvalid
from models.evaluate import ceiling as module
from models.evaluate.ceiling import Ceiling, command, exit_setting, fastest
from service.bundle.load import load_bundle
from service.runtime.student import Student

TEXTS = ["good", "very good film", "bad", "it is not okay", "where is my card", "slow"]


@pytest.fixture
def student(classify_bundle):
    return Student(load_bundle(classify_bundle))


def test_it_runs_at_least_so_long_and_goes_round(student):
    ceiling = Ceiling(student, TEXTS, policy=student.policy("never"), batch_items=4)
    ticks = itertools.count(0.0, 0.25)
    assert ceiling.run(1.0, clock=lambda: next(ticks)) == (4 + 2 + 4 + 2, 1.0)
    assert ceiling.run(0.0, clock=lambda: next(ticks))[0] == 4


def test_the_fastest_size_is_one_of_those_tried(student):
    best, size = fastest(student, TEXTS, student.policy(), seconds=0.001)
    assert size in module.BATCH_SIZES
    assert best.run(0.0)[0] == len(TEXTS)


def test_exits_are_named_as_in_requests():
    assert [exit_setting(words) for words in ("default", "never", "0.05")] == ["default", "never", 0.05]
    with pytest.raises(DataInvalid, match="--exit often"):
        exit_setting("often")


def test_the_command_answers_a_line_with_a_line(classify_bundle, tmp_path, capsys, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    monkeypatch.setattr(sys, "stdin", io.StringIO("0.001\n0.001\n"))
    command(
        str(classify_bundle),
        tmp_path / "rows.jsonl",
        store=tmp_path,
        exits="never",
        precision=None,
        backend="onnxruntime",
        try_s=0.001,
    )
    first, *rest = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["ready"] == "onnxruntime" and first["precision"] == "int8"
    assert len(rest) == 2 and all(line["texts"] > 0 and line["seconds"] > 0 for line in rest)
