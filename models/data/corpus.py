"""The corpus form of ranking data: documents, queries, judgements and candidates, each a file, checked line by line.

`corpus.jsonl {"id" | "_id", "text"[, "title"]}`, `queries.jsonl {"id" | "_id", "text"}`, and tab-separated qrels
(query, document, grade) and candidates (query, document) with a header or without: BEIR's columns. Any may be `.gz`.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from models.errors import DataInvalid

MOST_GRADE = 100.0
"""The largest grade of relevance that is not taken for a mistake."""

_HEADERS = ("query-id", "query_id", "queryid", "qid", "query")
R = TypeVar("R")


class _Bad(Exception):
    """What is wrong with one line."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `title` is "" where it has none."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """One query; `file` and `line` (1-based) say where it was read."""

    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus's documents by id, in file order."""

    documents: Mapping[str, Document]
    file: str


def read_corpus(path: Path) -> Corpus:
    """Read documents.

    Raises: DataInvalid: cannot be read, empty, or for the first bad line file, line and field: an id that is missing
        or occurs twice, a text that is missing or empty.
    """

    def document(fields: Mapping[str, Any], _: int) -> Document:
        title = fields.get("title")
        if title is not None and not isinstance(title, str):
            raise _Bad(f"field 'title': must be a string, is {type(title).__name__}")
        return Document(_text(fields, "text"), (title or "").strip())

    return Corpus(_by_id(path, document), str(path))


def read_queries(path: Path) -> dict[str, Query]:
    """Read queries by id, in file order. Raises: DataInvalid: as `read_corpus`."""
    return _by_id(path, lambda fields, line: Query(_text(fields, "text"), str(path), line))


def read_qrels(path: Path, *, queries: Container[str], corpus: Container[str]) -> dict[str, dict[str, float]]:
    """Read judgements: for each query its documents' grades, 0 being not relevant.

    Args:
        queries, corpus: the ids that may be named.
    Raises: DataInvalid: file, line and field: an unknown id, a pair that occurs twice, a grade that is no number or
        not in 0 to `MOST_GRADE`.
    """
    found: dict[str, dict[str, float]] = {}

    def take(columns: list[str]) -> None:
        query, document = _pair(columns, queries, corpus)
        if len(columns) < 3:
            raise _Bad("needs three columns: query, document, grade")
        grades = found.setdefault(query, {})
        if document in grades:
            raise _Bad(f"query {query!r} and document {document!r} occur twice")
        grades[document] = _grade(columns[2])

    _columns(path, take)
    return found


def read_candidates(path: Path, *, queries: Container[str], corpus: Container[str]) -> dict[str, list[str]]:
    """Read candidates: for each query its documents in file order. Further columns are ignored.

    Raises: DataInvalid: file, line and field: an unknown id, or a pair that occurs twice.
    """
    found: dict[str, dict[str, None]] = {}

    def take(columns: list[str]) -> None:
        query, document = _pair(columns, queries, corpus)
        documents = found.setdefault(query, {})
        if document in documents:
            raise _Bad(f"query {query!r} and document {document!r} occur twice")
        documents[document] = None

    _columns(path, take)
    return {query: list(documents) for query, documents in found.items()}


def check_grade(value: float) -> float:
    """A grade of relevance as it is. Raises: ValueError: not finite, or not in 0 to `MOST_GRADE`."""
    if not math.isfinite(value) or not 0 <= value <= MOST_GRADE:
        raise ValueError(f"must be in 0 to {MOST_GRADE:g}, is {value:g}")
    return value


def _grade(written: str) -> float:
    try:
        number = float(written)
    except ValueError as error:
        raise _Bad(f"field 'grade': must be a number, is {written!r}") from error
    try:
        return check_grade(number)
    except ValueError as error:
        raise _Bad(f"field 'grade': {error}") from error


def _pair(columns: list[str], queries: Container[str], corpus: Container[str]) -> tuple[str, str]:
    if len(columns) < 2:
        raise _Bad("needs at least two columns with a tab between them: query, document")
    query, document = columns[0], columns[1]
    if query not in queries:
        raise _Bad(f"field 'query': {query!r} is not among the queries")
    if document not in corpus:
        raise _Bad(f"field 'document': {document!r} is not in the corpus")
    return query, document


def _by_id(path: Path, made: Callable[[Mapping[str, Any], int], R]) -> dict[str, R]:
    found: dict[str, R] = {}

    def take(line: str, number: int) -> None:
        fields = _object(line)
        key = fields.get("id", fields.get("_id"))
        if isinstance(key, bool) or not isinstance(key, str | int) or not str(key).strip():
            raise _Bad("field 'id': missing, empty, or no string")
        if str(key) in found:
            raise _Bad(f"field 'id': {str(key)!r} occurs twice")
        found[str(key)] = made(fields, number)

    _each_line(path, take)
    return found


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _Bad(f"not JSON: {str(error).partition(':')[0]}") from error
    except RecursionError as error:
        raise _Bad("not JSON: nested too deeply") from error
    if not isinstance(value, dict):
        raise _Bad("not a JSON object")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise _Bad(f"field {name!r}: missing")
    if not isinstance(value, str):
        raise _Bad(f"field {name!r}: must be a string, is {type(value).__name__}")
    if not value.strip():
        raise _Bad(f"field {name!r}: is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"field {name!r}: not UTF-8 text (a lone surrogate)") from error
    return value


def _columns(path: Path, take: Callable[[list[str]], None]) -> None:
    """Each line's columns, the header left out."""

    def line(text: str, number: int) -> None:
        columns = [column.strip() for column in text.rstrip("\r\n").split("\t")]
        if number > 1 or columns[0].lower() not in _HEADERS:
            take(columns)

    _each_line(path, line)


def _each_line(path: Path, take: Callable[[str, int], None]) -> None:
    """Hand every line that is not blank to `take`. Raises: DataInvalid: for the first line it refuses."""
    problems: list[str] = []
    lines = 0
    for number, raw in _lines(path):
        lines += 1
        try:
            take(raw.decode("utf-8-sig" if number == 1 else "utf-8"), number)
        except UnicodeDecodeError:
            problems.append(f"{path}:{number}: not UTF-8")
        except _Bad as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise DataInvalid(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    if not lines:
        raise DataInvalid(f"{path}: holds no rows")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataInvalid(f"{path}: the gzip file is cut off or damaged") from error
    except OSError as error:
        raise DataInvalid(f"{path}: cannot be read: {error.strerror}") from error
