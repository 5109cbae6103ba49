"""Reading rows: every format gives the same rows, and every way to be wrong is named with file, line and field."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.read import read_rankings, read_rows, read_scored_pairs, read_texts
from models.data.rows import LabelledPassage, RankRow, Row, ScoredPair, SourcedText
from models.errors import DataInvalid

GOOD = '{"text": "fine", "label": "x"}\n'
ROWS = [
    {"text": "Where is it?", "label": "lost", "source": "web"},
    {"text": 'a "quoted", two-line\ntext', "label": "other", "source": "web"},
    {"text": "naïve café 😀", "label": "lost", "source": "app"},
]


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def csv_of(rows: list[dict[str, str]]) -> str:
    def field(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    lines = [",".join(rows[0])] + [",".join(field(value) for value in row.values()) for row in rows]
    return "\r\n".join(lines) + "\r\n"


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def refused(path: Path, labels: Any = "required", task: Any = "classify") -> str:
    """The message with which a file is refused, one line, its path shortened to its name."""
    with pytest.raises(DataInvalid) as caught:
        read_rows(path, task=task, labels=labels)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), path.name)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.csv.gz", "my.rows.v2.csv"])
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS)
    path = write(tmp_path / name, csv_of(ROWS) if ".csv" in name else jsonl)
    rows = read_rows(path, task="classify", labels="required")
    assert [(row.text, row.label, row.text_pair) for row in rows] == [(r["text"], r["label"], None) for r in ROWS]
    assert {row.file for row in rows} == {str(path)}
    lines = [2, 3, 5] if ".csv" in name else [1, 2, 3]  # a CSV text may be two lines long
    assert [row.line for row in rows] == lines


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", **{key: [row[key] for row in ROWS] for key in ROWS[0]})
    rows = read_rows(path, task="classify", labels="required")
    assert rows == [Row(r["text"], r["label"], None, str(path), i) for i, r in enumerate(ROWS, start=1)]


def test_parquet_columns_may_be_categories_and_numbers(tmp_path: Path) -> None:
    text = pa.array(["a", "b", "a"]).dictionary_encode()
    path = parquet(tmp_path / "rows.parquet", text=text, label=[0, 1, 1])
    assert [row.label for row in read_rows(path, task="classify", labels="required")] == ["0", "1", "1"]


def test_pairs_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", "text,text_pair,label\na,b,1\nc,d,0\n")
    rows = read_rows(path, task="classify", labels="required")
    assert [(row.text, row.text_pair, row.label) for row in rows] == [("a", "b", "1"), ("c", "d", "0")]


@pytest.mark.parametrize(
    ("written", "label"), [('"x"', "x"), ('" x "', "x"), ("3", "3"), ("3.0", "3"), ("0.5", "0.5"), ("-1", "-1")]
)
def test_labels_are_strings_or_numbers(tmp_path: Path, written: str, label: str) -> None:
    path = write(tmp_path / "rows.jsonl", f'{{"text": "a", "label": {written}}}\n')
    assert read_rows(path, task="classify", labels="required")[0].label == label


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path, name: str) -> None:
    content = f"{GOOD}\n{GOOD}" if name == "rows.jsonl" else "text,label\nfine,x\n\nfine,x\n"
    rows = read_rows(write(tmp_path / name, "\ufeff" + content), task="classify", labels="required")
    assert [row.text for row in rows] == ["fine", "fine"]
    assert rows[1].line - rows[0].line == 2


@pytest.mark.parametrize("line", ['{"text": "a"}', '{"text": "a", "label": null}'])
def test_labels_may_be_optional(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "rows.jsonl", line)
    assert read_rows(path, task="classify", labels="optional")[0].label is None
    assert refused(path) == "rows.jsonl:1: field 'label': missing"


def test_an_empty_csv_field_is_a_missing_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,text_pair,label\nfine,,\n")
    row = read_rows(path, task="classify", labels="optional")[0]
    assert (row.text_pair, row.label) == (None, None)
    assert refused(path) == "rows.csv:2: field 'label': missing"


def test_embed_rows_need_no_label_and_ignore_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "a", "text_pair": "b", "score": 4.5, "label": {}}\n')
    assert read_rows(path, task="embed", labels="required") == [Row("a", None, "b", str(path), 1)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hello", "not JSON: Expecting value"),
        ('{"text": "a"', "not JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ("9" * 5000, "not JSON: Exceeds the limit (4300 digits) for integer string conversion"),
        ('["a", "x"]', "not a JSON object"),
        ("7", "not a JSON object"),
        ("{}", "field 'text': missing"),
        ('{"label": "x"}', "field 'text': missing"),
        ('{"text": null, "label": "x"}', "field 'text': missing"),
        ('{"text": 7, "label": "x"}', "field 'text': must be a string, is int"),
        ('{"text": ["a"], "label": "x"}', "field 'text': must be a string, is list"),
        ('{"text": "", "label": "x"}', "field 'text': is empty"),
        ('{"text": " \\t", "label": "x"}', "field 'text': is empty"),
        ('{"text": "a\\ud800", "label": "x"}', "field 'text': not UTF-8 text (bad bytes or a lone surrogate)"),
        ('{"text": "a"}', "field 'label': missing"),
        ('{"text": "a", "label": ""}', "field 'label': is empty"),
        ('{"text": "a", "label": "  "}', "field 'label': is empty"),
        ('{"text": "a", "label": NaN}', "field 'label': is NaN or infinite"),
        ('{"text": "a", "label": -Infinity}', "field 'label': is NaN or infinite"),
        ('{"text": "a", "label": true}', "field 'label': must be a string or a number, is bool"),
        ('{"text": "a", "label": ["x"]}', "field 'label': must be a string or a number, is list"),
        ('{"text": "a", "label": "\\udfff"}', "field 'label': not UTF-8 text (bad bytes or a lone surrogate)"),
        ('{"text": "a", "label": "x", "text_pair": 1}', "field 'text_pair': must be a string, is int"),
        (
            '{"text": "a", "label": "x", "text_pair": "b"}',
            "field 'text_pair': line 1 has none; all rows of a file must be alike",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD + line + "\n" + GOOD)
    assert refused(path) == f"rows.jsonl:2: {problem}"


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD.encode() + b'{"text": "caf\xe9", "label": "x"}\n')
    assert refused(path) == "rows.jsonl:2: not UTF-8"


def test_the_first_bad_line_comes_with_the_number_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD + "oops\n" + GOOD + '{"text": 1}\n' + '{"text": "a"}\n')
    assert refused(path) == "rows.jsonl:2: not JSON: Expecting value (and 2 more)"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"text,label\na,x\nb\n", "rows.csv:3: field 'label': missing"),
        (b"text,label\na,x\nb,y,z\n", "rows.csv:3: 3 fields under a header of 2"),
        (b"text,label\na,x\ncaf\xe9,y\n", "rows.csv:3: field 'text': not UTF-8 text (bad bytes or a lone surrogate)"),
        (b'text,label\n"two\nlines",x\n,y\n', "rows.csv:4: field 'text': missing"),
        (b'text,label\na,x\n"b,y\n', "rows.csv:3: not CSV: unexpected end of data"),
        (
            b"text,label\na,x\n" + b"b" * 200_000 + b",y\n",
            "rows.csv:3: not CSV: field larger than field limit (131072)",
        ),
        (b"sentence,label\na,x\n", "rows.csv:1: the header must name each field once, 'text' among them"),
        (b"text,label,text\na,x,b\n", "rows.csv:1: the header must name each field once, 'text' among them"),
        (b"text,label\n", "rows.csv: holds no rows"),
        (b"", "rows.csv: holds no rows"),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    assert refused(write(tmp_path / "rows.csv", content)) == problem


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    assert refused(write(path, b"PAR1 not really")).startswith("rows.parquet: cannot be read as Parquet: ")
    assert refused(parquet(path, sentence=["a"], label=["x"])).startswith("rows.parquet: the columns must name")
    assert refused(parquet(path, text=["a", None], label=["x", "y"])) == "rows.parquet:2: field 'text': missing"
    assert refused(parquet(path, text=["a", "b"], label=[1.0, float("nan")])) == (
        "rows.parquet:2: field 'label': is NaN or infinite"
    )
    assert refused(parquet(path, text=[1], label=["x"])) == "rows.parquet:1: field 'text': must be a string, is int"
    assert refused(parquet(path, text=[], label=[])) == "rows.parquet: holds no rows"


def test_parquet_strings_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.utf8(), 2, pa.array([b"fine", b"caf\xe9"]).buffers())
    path = parquet(tmp_path / "rows.parquet", text=bad, label=["x", "y"])
    assert refused(path) == "rows.parquet:2: field 'text': not UTF-8 text (bad bytes or a lone surrogate)"


@pytest.mark.parametrize("cut", [10, -12, -3])
def test_a_cut_off_gzip_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD * 1000).encode())[:cut])
    assert refused(path) == "rows.jsonl.gz: the gzip file is cut off or damaged"


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz"])
def test_a_file_that_is_only_named_gzip_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(GOOD)
    assert refused(path) == f"{name}: the gzip file is cut off or damaged"


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    raw = bytearray(gzip.compress("".join(f'{{"text": "{i * 7919}", "label": "x"}}\n' for i in range(500)).encode()))
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    assert "rows.jsonl.gz" in refused(path)


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert refused(write(tmp_path / "rows.jsonl", content)) == "rows.jsonl: holds no rows"


def test_a_missing_file_a_folder_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.jsonl") == "gone.jsonl: cannot be read: No such file or directory"
    assert "cannot be read as Parquet" in refused(tmp_path / "gone.parquet")
    (tmp_path / "folder.csv").mkdir()
    assert refused(tmp_path / "folder.csv") == "folder.csv: cannot be read: Is a directory"
    for name in ("rows.txt", "rows", "rows.tsv.gz", "rows.parquet.gz", "rows.gz"):
        expected = f"{name}: not a .jsonl, .csv (or either as .gz) or .parquet file"
        assert refused(write(tmp_path / name, GOOD)) == expected


def test_rank_rows_are_refused(tmp_path: Path) -> None:
    assert (
        refused(write(tmp_path / "rows.jsonl", GOOD), task="rank")
        == "rows.jsonl: rows of task rank are not single texts"
    )


RANKING = '{"query": "how long?", "passages": [{"text": "two days", "label": 1}, {"text": "by post"}], "other": 1}\n'


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rankings(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(RANKING.encode()) if name.endswith("gz") else RANKING.encode())
    passages = (LabelledPassage("two days", 1.0), LabelledPassage("by post"))
    assert read_rankings(path) == [RankRow("how long?", passages, str(path), 1)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("[]", "not a JSON object"),
        ('{"passages": [{"text": "x"}]}', "field 'query': missing"),
        ('{"query": 3, "passages": [{"text": "x"}]}', "field 'query': must be a string, is int"),
        ('{"query": "q"}', "field 'passages': must be a list of at least one passage"),
        ('{"query": "q", "passages": []}', "field 'passages': must be a list of at least one passage"),
        ('{"query": "q", "passages": ["x"]}', "field 'passages[0]': must be an object with a 'text'"),
        ('{"query": "q", "passages": [{"text": " "}]}', "field 'passages[0]': is empty"),
        ('{"query": "q", "passages": [{"text": "x", "label": "1"}]}', "field 'passages[0]': 'label' must be a number"),
    ],
)
def test_bad_rankings(row: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(RANKING + row + "\n")
    with pytest.raises(DataInvalid, match=re.escape(f"rows.jsonl:2: {problem}")):
        read_rankings(path)


def test_rankings_are_read_from_jsonl(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"read from \.jsonl"):
        read_rankings(tmp_path / "rows.csv")


SCORED = [{"text": "a", "text_pair": "b", "score": 4.5}, {"text": "c", "text_pair": "d", "score": 0}]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.csv", "pairs.parquet"])
def test_scored_pairs_of_every_format(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        path = parquet(tmp_path / name, text=["a", "c"], text_pair=["b", "d"], score=[4.5, 0.0])
    else:
        jsonl = "".join(json.dumps(row) + "\n" for row in SCORED)
        path = write(tmp_path / name, "text,text_pair,score\na,b,4.5\nc,d,0\n" if ".csv" in name else jsonl)
    first = 2 if ".csv" in name else 1
    assert read_scored_pairs(path) == [
        ScoredPair("a", "b", 4.5, str(path), first),
        ScoredPair("c", "d", 0.0, str(path), first + 1),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"text": "a", "text_pair": "b"}', "field 'score': missing"),
        ('{"text": "a", "text_pair": "b", "score": null}', "field 'score': missing"),
        ('{"text": "a", "text_pair": "b", "score": NaN}', "field 'score': must be a finite number"),
        ('{"text": "a", "text_pair": "b", "score": -Infinity}', "field 'score': must be a finite number"),
        ('{"text": "a", "text_pair": "b", "score": 1e999}', "field 'score': must be a finite number"),
        (f'{{"text": "a", "text_pair": "b", "score": 1{"0" * 400}}}', "field 'score': must be a finite number"),
        ('{"text": "a", "text_pair": "b", "score": true}', "field 'score': must be a finite number"),
        ('{"text": "a", "text_pair": "b", "score": "high"}', "field 'score': must be a number, is str"),
        ('{"text": "a", "text_pair": "b", "score": [1]}', "field 'score': must be a number, is list"),
        ('{"text": "a", "score": 1}', "field 'text_pair': missing"),
        ('{"text": "a", "text_pair": " ", "score": 1}', "field 'text_pair': is empty"),
        ('{"text_pair": "b", "score": 1}', "field 'text': missing"),
        ("[]", "not a JSON object"),
    ],
)
def test_bad_scored_pairs(row: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", json.dumps(SCORED[0]) + "\n" + row + "\n")
    with pytest.raises(DataInvalid, match=re.escape(f"pairs.jsonl:2: {problem}")):
        read_scored_pairs(path)


def test_bad_pairs_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", "text,text_pair,score\na,b,x\na,b,\na,b,1\n")
    with pytest.raises(DataInvalid, match=r"pairs.csv:2: field 'score': must be a number, is str \(and 1 more\)$"):
        read_scored_pairs(path)


SOURCED = [{"text": "a", "source": "x"}, {"text": "b", "text_pair": "c", "source": "y"}, {"text": "d"}]


def test_texts_are_those_of_rows_and_of_both_sides_of_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", "".join(json.dumps(row) + "\n" for row in SOURCED))
    assert read_texts(path) == [
        SourcedText("a", "x", str(path), 1),
        SourcedText("b", "y", str(path), 2),
        SourcedText("c", "y", str(path), 2),
        SourcedText("d", "", str(path), 3),
    ]
    assert [text.text for text in read_texts(path, sources=("y",))] == ["b", "c"]
    assert [text.text for text in read_texts(path, sources=("y", "x"))] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["texts.csv", "texts.parquet"])
def test_sources_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    if name.endswith("csv"):
        path = write(tmp_path / name, "source,text\nx,a\ny,b\n")
    else:
        path = parquet(tmp_path / name, source=["x", "y"], text=["a", "b"])
    assert [text.text for text in read_texts(path, sources=("y",))] == ["b"]


def test_a_source_may_be_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", '{"text": "a", "source": 0}\n{"text": "b", "source": 1}\n')
    assert [text.text for text in read_texts(path, sources=("0",))] == ["a"]


def test_a_source_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", '{"text": "a", "source": "x"}\n')
    with pytest.raises(DataInvalid, match=r"texts.jsonl: no row has a 'source' of y, z$"):
        read_texts(path, sources=("y", "z"))


def test_a_bad_text_is_named_though_its_source_is_not_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", '{"text": "a", "source": "x"}\n{"text": 3, "source": "y"}\n')
    with pytest.raises(DataInvalid, match=r"texts.jsonl:2: field 'text': must be a string, is int$"):
        read_texts(path, sources=("x",))
