"""The cascade: both parts' exits in one pipeline, and back from a file like every student."""

import json
from pathlib import Path

import pytest
import torch

from models.export.stages import export_stages
from models.students.bilstm import BilstmConfig, BilstmStudent
from models.students.cascade import CascadeConfig, CascadeStudent
from models.students.cnn import CnnConfig, CnnStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.ngram import NgramConfig, NgramStudent
from models.students.student import (
    Student,
    encoder_of,
    exit_names,
    labels_of,
    load_student,
    save_student,
    tables_of,
)

NGRAM = NgramConfig(vocabulary=30, width=3, orders=2, buckets=101, rows=4, hidden=8, max_tokens=12, markers=(2, 3))
ENCODER = EncoderConfig(
    vocabulary=30, width=3, layers=2, hidden=8, heads=2, feed_forward=16, exits=(0, 2), max_tokens=12, head_width=8
)
BILSTM = BilstmConfig(vocabulary=30, width=3, token_width=6, states=4, head_width=8, max_tokens=12)
CNN = CnnConfig(vocabulary=30, width=3, token_width=6, sizes=(2, 3), filters=4, max_tokens=12)
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 0, 0]])
MASK = (IDS > 0).long()


def made(architecture: str) -> Student:
    torch.manual_seed(0)
    parts = {
        "encoder": lambda: EncoderStudent(ENCODER),
        "ngram": lambda: NgramStudent(NGRAM),
        "cascade": lambda: CascadeStudent(CascadeConfig(NGRAM, ENCODER)),
        "bilstm": lambda: BilstmStudent(BILSTM),
        "cnn": lambda: CnnStudent(CNN),
    }
    return parts[architecture]().eval()


def test_its_exits_are_those_of_its_parts():
    student = made("cascade")
    with torch.no_grad():
        found = student(IDS, MASK)
        first, rest = student.ngram(IDS, MASK), student.encoder(IDS, MASK)
    assert all(torch.equal(a, b) for a, b in zip(found.exits, (*first.exits, *rest.exits), strict=True))
    assert len(found.hidden) == 3


def test_its_stages_read_the_ids_twice_and_depths_rise(tmp_path: Path):
    student = made("cascade")
    exported = [each.stage for each in export_stages(student.stages(), tmp_path)]
    assert [stage.id for stage in exported] == ["00", "01", "02"]
    assert [stage.inputs for stage in exported] == [
        {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        {"states": "01.hidden", "attention_mask": "attention_mask"},
    ]
    depths = student.depths()
    assert list(depths) == sorted(depths)
    assert depths[0] < 0.5
    assert depths[-1] == 1.0


@pytest.mark.parametrize(
    ("architecture", "exits", "sparse"),
    [
        ("encoder", ("embeddings", "full"), [False]),
        ("ngram", ("full",), [True]),
        ("cascade", ("ngram", "embeddings", "full"), [False, True]),
        ("bilstm", ("full",), [False]),
        ("cnn", ("full",), [False]),
    ],
)
def test_what_a_refresh_needs_to_know(architecture: str, exits: tuple[str, ...], sparse: list[bool]):
    student = made(architecture)
    assert exit_names(student) == exits
    assert len(student.stages()) == len(student.depths()) == len(exits)
    assert [table.sparse for table in tables_of(student)] == sparse
    assert (encoder_of(student) is None) == (architecture not in ("encoder", "cascade"))
    assert labels_of(student) == 3


@pytest.mark.parametrize("architecture", ["encoder", "ngram", "cascade", "bilstm", "cnn"])
def test_it_comes_back_from_a_file(architecture: str, tmp_path: Path):
    student = made(architecture)
    save_student(student, tmp_path)
    again = load_student(tmp_path)
    assert type(again) is type(student)
    assert again.config == student.config
    with torch.no_grad():
        for a, b in zip(again(IDS, MASK).exits, student(IDS, MASK).exits, strict=True):
            assert torch.equal(a, b)


def test_a_file_from_before_there_were_architectures_is_an_encoder(tmp_path: Path):
    save_student(made("encoder"), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"architecture": "encoder", ', ""))
    assert isinstance(load_student(tmp_path), EncoderStudent)


def test_a_file_that_calls_its_width_labels_is_read_too(tmp_path: Path):
    student = made("encoder")
    save_student(student, tmp_path)
    config = tmp_path / "config.json"
    shape = json.loads(config.read_text())
    later = {"architecture", "output", "attention_width", "pairs"}
    old = {("n_labels" if name == "width" else name): value for name, value in shape.items() if name not in later}
    config.write_text(json.dumps(old))
    assert load_student(tmp_path).config == student.config
