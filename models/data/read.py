"""Files of rows: JSONL and CSV (plain or gzipped) and Parquet, checked line by line."""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from models.data.rows import LabelledPassage, RankRow, Row, ScoredPair, SourcedText
from models.errors import DataInvalid
from service.bundle.manifest import Task

FIELDS = ("text", "text_pair", "label")
_COLUMNS = (*FIELDS, "source", "score")
R = TypeVar("R")


class _Bad(Exception):
    """What is wrong with one line."""


@dataclass(frozen=True, slots=True)
class _Record:
    """One line as read: its fields, or what is wrong with it."""

    line: int
    fields: dict[str, Any] | None
    problem: str = ""


def read_rows(path: Path, *, task: Task, labels: Literal["required", "optional"]) -> list[Row]:
    """Read a file of rows, in file order. Fields other than `text`, `text_pair` and `label` are ignored.

    Args:
        path: `.jsonl`, `.csv` (with a header), either also as `.gz`, or `.parquet`.
        task: `classify` reads all three fields; `embed` reads no label.
        labels: whether a row may come without one. Numbers are taken as labels by their decimal form.
    Raises:
        DataInvalid: the file cannot be read or holds no rows; or, for the first bad line, file, line and field, and
            how many more there are. For Parquet the line is the row's number from 1.
    """
    if task == "rank":
        raise DataInvalid(f"{path}: rows of task rank are not single texts")
    wanted = FIELDS if task == "classify" else FIELDS[:2]
    rows: list[Row] = []

    def checked(record: _Record) -> Row:
        row = _row(record, path, wanted, labels)
        _same_shape(rows, row)
        return row

    return _all(path, checked, rows)


def read_rankings(path: Path) -> list[RankRow]:
    """Read queries with their passages: `{"query", "passages": [{"text", "label"?}, ...]}`, one to a line.

    Args:
        path: `.jsonl`, also as `.gz`. Fields other than these are ignored.
    Raises: DataInvalid: as `read_rows`.
    """
    if (path.suffixes[-2:-1] if path.suffix == ".gz" else path.suffixes[-1:]) != [".jsonl"]:
        raise DataInvalid(f"{path}: rows of task rank are read from .jsonl (or .jsonl.gz) files")
    return _all(path, lambda record: _ranking(record, path), [])


def read_texts(path: Path, *, sources: Sequence[str] = ()) -> list[SourcedText]:
    """Read texts to learn from, in file order: each row's text and, of a pair, the other one too.

    Args:
        path: as `read_rows`.
        sources: keep rows with one of these in their field `source`; none: all rows.
    Raises: DataInvalid: as `read_rows`; or no row has one of the sources.
    """

    def checked(record: _Record) -> tuple[SourcedText, ...]:
        row = _row(record, path, FIELDS[:2], "optional")
        named = (record.fields or {}).get("source")
        source = "" if named is None else str(named)
        both = (row.text,) if row.text_pair is None else (row.text, row.text_pair)
        return tuple(SourcedText(text, source, str(path), record.line) for text in both)

    rows: list[tuple[SourcedText, ...]] = []
    kept = [each for row in _all(path, checked, rows) for each in row if not sources or each.source in sources]
    if not kept:
        raise DataInvalid(f"{path}: no row has a 'source' of {', '.join(sources)}")
    return kept


def read_scored_pairs(path: Path) -> list[ScoredPair]:
    """Read pairs of texts with how alike they are: `{"text", "text_pair", "score"}`, a finite number.

    Raises: DataInvalid: as `read_rows`.
    """

    def checked(record: _Record) -> ScoredPair:
        row = _row(record, path, FIELDS[:2], "optional")
        if row.text_pair is None:
            raise _Bad("field 'text_pair': missing")
        return ScoredPair(row.text, row.text_pair, _score(record.fields or {}), str(path), record.line)

    return _all(path, checked, [])


def _score(fields: dict[str, Any]) -> float:
    value = fields.get("score")
    if value is None:
        raise _Bad("field 'score': missing")
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except OverflowError as error:
        raise _Bad("field 'score': must be a finite number") from error
    except (TypeError, ValueError) as error:
        raise _Bad(f"field 'score': must be a number, is {type(value).__name__}") from error
    if not math.isfinite(number):
        raise _Bad("field 'score': must be a finite number")
    return number


def _all(path: Path, checked: Callable[[_Record], R], rows: list[R]) -> list[R]:
    """Every line of a file, added to `rows` as it is checked."""
    problems: list[str] = []
    for record in _records(path):
        try:
            rows.append(checked(record))
        except _Bad as error:
            problems.append(f"{path}:{record.line}: {error}")
    if problems:
        raise DataInvalid(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    if not rows:
        raise DataInvalid(f"{path}: holds no rows")
    return rows


def _records(path: Path) -> Iterator[_Record]:
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind == ".parquet" and path.suffix != ".gz":
        yield from _parquet(path)
        return
    readers: dict[str, Callable[[Path, Iterable[bytes]], Iterator[_Record]]] = {".jsonl": _jsonl, ".csv": _csv}
    if kind not in readers:
        raise DataInvalid(f"{path}: not a .jsonl, .csv (or either as .gz) or .parquet file")
    try:
        with _opened(path) as file:
            yield from readers[kind](path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataInvalid(f"{path}: the gzip file is cut off or damaged") from error
    except OSError as error:
        raise DataInvalid(f"{path}: cannot be read: {error.strerror}") from error


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _jsonl(_: Path, lines: Iterable[bytes]) -> Iterator[_Record]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _json_record(number, line)


def _json_record(number: int, line: bytes) -> _Record:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return _Record(number, None, "not UTF-8")
    except ValueError as error:
        return _Record(number, None, f"not JSON: {str(error).partition(':')[0]}")
    except RecursionError:
        return _Record(number, None, "not JSON: nested too deeply")
    return _Record(number, value) if isinstance(value, dict) else _Record(number, None, "not a JSON object")


def _csv(path: Path, lines: Iterable[bytes]) -> Iterator[_Record]:
    # bytes that are not UTF-8 become lone surrogates, which the check of the field reports
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
    try:
        header = [name.strip().removeprefix("\ufeff") for name in next(reader, [])]
        if header and ("text" not in header or len(set(header)) < len(header)):
            raise DataInvalid(f"{path}:1: the header must name each field once, 'text' among them")
        before = reader.line_num
        for values in reader:
            if len(values) > len(header):
                yield _Record(before + 1, None, f"{len(values)} fields under a header of {len(header)}")
            elif values:
                yield _Record(before + 1, {name: value or None for name, value in zip(header, values, strict=False)})
            before = reader.line_num
    except csv.Error as error:
        yield _Record(reader.line_num, None, f"not CSV: {error}")


def _parquet(path: Path) -> Iterator[_Record]:
    try:
        names = [name for name in pq.read_schema(path).names if name in _COLUMNS]
        if "text" not in names or len(set(names)) < len(names):
            raise DataInvalid(f"{path}: the columns must name each field once, 'text' among them")
        values = [_values(column) for column in pq.read_table(path, columns=names).columns]
    except (pa.ArrowException, OSError) as error:
        raise DataInvalid(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
    for number, record in enumerate(zip(*values, strict=True), start=1):
        yield _Record(number, dict(zip(names, record, strict=True)))


def _values(column: Any) -> list[Any]:
    """A column as Python values; strings that are not UTF-8 hold lone surrogates, as from CSV."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return cast(list[Any], column.to_pylist())
    raw = column.cast(pa.large_binary()).to_pylist()
    return [value if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _row(record: _Record, path: Path, wanted: tuple[str, ...], labels: Literal["required", "optional"]) -> Row:
    if record.fields is None:
        raise _Bad(record.problem)
    fields = {name: record.fields.get(name) for name in wanted}
    if fields["text"] is None:
        raise _Bad("field 'text': missing")
    text = _text("text", fields["text"])
    pair = None if fields["text_pair"] is None else _text("text_pair", fields["text_pair"])
    label = _label(fields.get("label"))
    if label is None and labels == "required" and "label" in wanted:
        raise _Bad("field 'label': missing")
    return Row(text, label, pair, str(path), record.line)


def _ranking(record: _Record, path: Path) -> RankRow:
    if record.fields is None:
        raise _Bad(record.problem)
    query, passages = record.fields.get("query"), record.fields.get("passages")
    if query is None:
        raise _Bad("field 'query': missing")
    if not isinstance(passages, list) or not passages:
        raise _Bad("field 'passages': must be a list of at least one passage")
    read = tuple(_passage(passage, f"passages[{at}]") for at, passage in enumerate(passages))
    return RankRow(_text("query", query), read, str(path), record.line)


def _passage(value: Any, field: str) -> LabelledPassage:
    if not isinstance(value, dict) or "text" not in value:
        raise _Bad(f"field {field!r}: must be an object with a 'text'")
    label = value.get("label")
    if label is not None and (
        isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label)
    ):
        raise _Bad(f"field {field!r}: 'label' must be a number")
    return LabelledPassage(_text(field, value["text"]), None if label is None else float(label))


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Bad(f"field {field!r}: must be a string, is {type(value).__name__}")
    if not value.strip():
        raise _Bad(f"field {field!r}: is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"field {field!r}: not UTF-8 text (bad bytes or a lone surrogate)") from error
    return value


def _label(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Bad(f"field 'label': must be a string or a number, is {type(value).__name__}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Bad("field 'label': is NaN or infinite")
        value = int(value) if value.is_integer() else value
    return _text("label", str(value)).strip()


def _same_shape(rows: list[Row], row: Row) -> None:
    if rows and (rows[0].text_pair is None) != (row.text_pair is None):
        other = "has none" if rows[0].text_pair is None else "has one"
        raise _Bad(f"field 'text_pair': line {rows[0].line} {other}; all rows of a file must be alike")
