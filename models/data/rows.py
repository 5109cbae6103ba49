"""A row of data and its keys: what "the same row" and "the same words" mean everywhere in the offline half."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One text, or a pair, with its label; `file` and `line` (1-based) say where it was read."""

    text: str
    label: str | None = None
    text_pair: str | None = None
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class LabelledPassage:
    """A passage of a query and how relevant it is; None: not stated."""

    text: str
    label: float | None = None


@dataclass(frozen=True, slots=True)
class RankRow:
    """A query with its passages, at least one; `file` and `line` (1-based) say where it was read."""

    query: str
    passages: tuple[LabelledPassage, ...]
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class SourcedText:
    """One text and where it comes from, as its file says ("" where it does not)."""

    text: str
    source: str = ""
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how alike people found them, on whatever scale their file uses."""

    text: str
    text_pair: str
    score: float
    file: str = ""
    line: int = 0


def text_of(row: Row) -> str | tuple[str, str]:
    """What a row shows a model: its text, or the pair of texts."""
    return row.text if row.text_pair is None else (row.text, row.text_pair)


def joined(row: Row) -> str:
    """A row as one text, for a model of words: a pair's texts one after the other."""
    return row.text if row.text_pair is None else f"{row.text} {row.text_pair}"


def normalised(text: str) -> str:
    """`text` as NFKC, case folded, each run of whitespace as one space.

    >>> normalised("  Where is\\tmy CARD? ")
    'where is my card?'
    """
    if not text.isascii():
        # subtle: folding case can undo the normal form, so it is taken again
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.casefold().split())


def words(text: str) -> str:
    """The words of a text: `normalised`, letters, marks and digits only; a text that has none stays `normalised`.

    >>> words("Where's my top-up?"), words("Where s my top up"), words("?!")
    ('where s my top up', 'where s my top up', '?!')
    """
    form = normalised(text)
    if form.isascii():
        return " ".join(re.findall(r"[a-z0-9]+", form)) or form
    spaced = (letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in form)
    return " ".join("".join(spaced).split()) or form


def row_key(row: Row) -> str:
    """sha256 (hex) of what a row says, its label aside: rows of one key are the same input."""
    return _sha256(normalised(row.text), None if row.text_pair is None else normalised(row.text_pair))


def group_key(row: Row) -> str:
    """sha256 (hex) of a row's words: rows of one group differ in punctuation at most, and are never split."""
    return _sha256(words(row.text), None if row.text_pair is None else words(row.text_pair))


def _sha256(text: str, text_pair: str | None) -> str:
    # subtle: neither form holds a line feed, so no pair can look like another pair or like a text
    whole = text if text_pair is None else f"{text}\n{text_pair}"
    return hashlib.sha256(whole.encode()).hexdigest()
