"""Files of texts and recordings, and what is said about those that are wrong."""

import gzip
from pathlib import Path

import pytest

import loadtest
from loadtest.errors import TextsInvalid
from loadtest.texts import RecordedText, Text, read_recording, read_texts


def test_jsonl_has_labels_and_plain_text_has_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "l"}\n\n{"text": "y"}\n')
    (tmp_path / "a.txt").write_text("x\n\ny\n")
    assert read_texts(tmp_path / "a.jsonl") == (Text("x", "l"), Text("y"))
    assert read_texts(tmp_path / "a.txt") == (Text("x"), Text("y"))


def test_gzip_is_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    assert read_texts(tmp_path / "a.jsonl.gz") == (Text("x"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a\.jsonl:1: not JSON"),
        ('{"text": "x"}\n[]', r"a\.jsonl:2: must be a JSON object"),
        ('{"text": 3}', r"a\.jsonl:1: text: must be a string"),
        ('{"text": "x", "label": 1}', r"a\.jsonl:1: label: must be a string"),
        ("\n", "holds no texts"),
    ],
)
def test_wrong_texts_are_told_with_file_and_line(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(TextsInvalid, match=message):
        read_texts(tmp_path / "a.jsonl")


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    for file in ("none.txt", "b.txt", "c.jsonl.gz"):
        with pytest.raises(TextsInvalid, match="cannot be read"):
            read_texts(tmp_path / file)


def test_recordings_have_moments(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"at_s": 1, "text": "x"}\n{"at_s": 2.5, "text": "y", "kind": "k"}\n')
    assert read_recording(file) == (RecordedText(1.0, "x"), RecordedText(2.5, "y", "k"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}', "at_s: must be a number"),
        ('{"at_s": true, "text": "x"}', "at_s: must be a number"),
        ('{"at_s": -1, "text": "x"}', "at_s: must be a number"),
        ('{"at_s": 1, "text": "x", "kind": 4}', "kind: must be a string"),
        ('{"at_s": 2, "text": "x"}\n{"at_s": 1, "text": "x"}', "request 2: at_s goes back"),
        ("", "holds no requests"),
    ],
)
def test_wrong_recordings_are_told(tmp_path, content, message):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(TextsInvalid, match=message):
        read_recording(tmp_path / "r.jsonl")


def test_our_own_texts_are_distinct_and_labelled_where_they_say_so():
    folder = Path(loadtest.__file__).parent / "texts"
    reviews, questions = read_texts(folder / "reviews.jsonl"), read_texts(folder / "questions.txt")
    assert {text.label for text in reviews} == {"positive", "negative"}
    assert len({text.text for text in (*reviews, *questions)}) == len(reviews) + len(questions) == 200
