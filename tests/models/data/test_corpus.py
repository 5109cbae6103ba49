"""The corpus form: what is read, and each way to be wrong with file, line and field."""

import gzip
from pathlib import Path

import pytest

from models.data.corpus import read_candidates, read_corpus, read_qrels, read_queries
from models.errors import DataInvalid

QUERIES, CORPUS = {"q1": None, "q2": None}, {"d1": None, "d2": None}


def written(folder: Path, text: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, read) -> str:
    with pytest.raises(DataInvalid) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "F")


def test_documents_have_a_text_and_may_have_a_title(tmp_path: Path) -> None:
    path = written(tmp_path, '{"id": "d1", "title": " T ", "text": "one"}\n\n{"_id": 2, "text": "two"}\n')
    found = read_corpus(path).documents
    assert [(key, each.title, each.text) for key, each in found.items()] == [("d1", "T", "one"), ("2", "", "two")]


def test_queries_say_where_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "q", "text": "why"}\n'))
    (query,) = read_queries(path).values()
    assert (query.text, query.file, query.line) == ("why", str(path), 1)


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"])
def test_qrels_with_a_header_or_without(tmp_path: Path, header: str) -> None:
    path = written(tmp_path, header + "q1\td1\t1\r\nq1\td2\t0\nq2\td2\t2.5\n")
    assert read_qrels(path, queries=QUERIES, corpus=CORPUS) == {"q1": {"d1": 1.0, "d2": 0.0}, "q2": {"d2": 2.5}}


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\trank\n"])
def test_candidates_keep_their_order(tmp_path: Path, header: str) -> None:
    path = written(tmp_path, header + "q1\td2\t1\nq2\td1\t1\nq1\td1\t2\n")
    assert read_candidates(path, queries=QUERIES, corpus=CORPUS) == {"q1": ["d2", "d1"], "q2": ["d1"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "F:2: field 'id': 'a' occurs twice"),
        ('{"text": "x"}', "F:1: field 'id': missing"),
        ('{"id": " ", "text": "x"}', "F:1: field 'id': missing, empty"),
        ('{"id": true, "text": "x"}', "F:1: field 'id': missing, empty, or no string"),
        ('{"id": "a"}', "F:1: field 'text': missing"),
        ('{"id": "a", "text": 3}', "F:1: field 'text': must be a string, is int"),
        ('{"id": "a", "text": "  "}', "F:1: field 'text': is empty"),
        ('{"id": "a", "text": "\\ud800"}', "F:1: field 'text': not UTF-8 text"),
        ('{"id": "a", "text": "x", "title": 4}', "F:1: field 'title': must be a string"),
        ("[1]", "F:1: not a JSON object"),
        ("{", "F:1: not JSON"),
        ("[" * 100_000, "F:1: not JSON: nested too deeply"),
        (b"\xff\xfe", "F:1: not UTF-8"),
        ("\n", "F: holds no rows"),
        ('{"id": "a"}\n{"id": "b"}', "F:1: field 'text': missing (and 1 more)"),
    ],
)
def test_a_bad_document_is_named(tmp_path: Path, line: str | bytes, said: str) -> None:
    assert said in refused(written(tmp_path, line), read_corpus)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q9\td1\t1", "F:1: field 'query': 'q9' is not among the queries"),
        ("q1\td9\t1", "F:1: field 'document': 'd9' is not in the corpus"),
        ("q1\td1", "F:1: needs three columns"),
        ("q1 d1 1", "F:1: needs at least two columns with a tab between them"),
        ("q1\td1\tmuch", "F:1: field 'grade': must be a number, is 'much'"),
        ("q1\td1\tnan", "F:1: field 'grade': must be in 0 to 100, is nan"),
        ("q1\td1\t-1", "F:1: field 'grade': must be in 0 to 100, is -1"),
        ("q1\td1\t1e9", "F:1: field 'grade': must be in 0 to 100, is 1e+09"),
        ("q1\td1\t1\nq1\td1\t1", "F:2: query 'q1' and document 'd1' occur twice"),
        ("q1\td1\t1\nquery-id\tcorpus-id\tscore", "F:2: field 'query': 'query-id' is not among the queries"),
    ],
)
def test_a_bad_judgement_is_named(tmp_path: Path, line: str, said: str) -> None:
    assert said in refused(written(tmp_path, line), lambda path: read_qrels(path, queries=QUERIES, corpus=CORPUS))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q9\td1", "F:1: field 'query': 'q9' is not among the queries"),
        ("q1\td9", "F:1: field 'document': 'd9' is not in the corpus"),
        ("q1\td1\nq1\td1", "F:2: query 'q1' and document 'd1' occur twice"),
    ],
)
def test_a_bad_candidate_is_named(tmp_path: Path, line: str, said: str) -> None:
    assert said in refused(written(tmp_path, line), lambda path: read_candidates(path, queries=QUERIES, corpus=CORPUS))


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    assert "F: cannot be read" in refused(tmp_path / "none.jsonl", read_corpus)
    assert "F: the gzip file is cut off" in refused(written(tmp_path, b"\x1f\x8b", "x.gz"), read_corpus)
