"""Texts to send, from JSONL (`text`, `label`?) or plain text files (one a line), gzipped or not."""

import gzip
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import TextsInvalid


@dataclass(frozen=True, slots=True)
class Text:
    """One text, and its label where the data has one."""

    text: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedText:
    """A line of a recording: when (seconds), what, and the name of the kind that sends it, where it says so."""

    at_s: float
    text: str
    kind: str | None = None


def read_texts(path: Path) -> tuple[Text, ...]:
    """Read a file of texts. Raises: TextsInvalid: it cannot be read, a row is wrong, or there are none."""
    lines = _lines(path)
    if ".jsonl" in path.suffixes:
        texts = tuple(_text(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    else:
        texts = tuple(Text(line) for line in lines if line.strip())
    if not texts:
        raise TextsInvalid(f"{path}: holds no texts")
    return texts


def read_recording(path: Path) -> tuple[RecordedText, ...]:
    """Read a recording: JSONL of `at_s`, `text` and, if wanted, `kind`, sorted by `at_s`. Raises: TextsInvalid."""
    rows = tuple(_recorded(path, number, line) for number, line in enumerate(_lines(path), 1) if line.strip())
    if not rows:
        raise TextsInvalid(f"{path}: holds no requests")
    for number, (before, after) in enumerate(itertools.pairwise(rows), 2):
        if after.at_s < before.at_s:
            raise TextsInvalid(f"{path}: request {number}: at_s goes back")
    return rows


def _lines(path: Path) -> list[str]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TextsInvalid(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _text(path: Path, number: int, line: str) -> Text:
    row = _row(path, number, line)
    label = row.get("label")
    if label is not None and not isinstance(label, str):
        raise TextsInvalid(f"{path}:{number}: label: must be a string")
    return Text(_string(path, number, row), label)


def _recorded(path: Path, number: int, line: str) -> RecordedText:
    row = _row(path, number, line)
    at_s, kind = row.get("at_s"), row.get("kind")
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not 0 <= at_s < float("inf"):
        raise TextsInvalid(f"{path}:{number}: at_s: must be a number of seconds, not negative")
    if kind is not None and not isinstance(kind, str):
        raise TextsInvalid(f"{path}:{number}: kind: must be a string")
    return RecordedText(float(at_s), _string(path, number, row), kind)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TextsInvalid(f"{path}:{number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise TextsInvalid(f"{path}:{number}: must be a JSON object")
    return row


def _string(path: Path, number: int, row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise TextsInvalid(f"{path}:{number}: text: must be a string")
    return text
