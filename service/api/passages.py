"""What rank remembers: what a student made of passages it has seen, by version, text and treatment, within a bound.

An embedding, or a state that is joined to a query's, is kept as it was computed, so that an answer with the cache is
the answer without it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NewType, TypeVar

from service.engine.item import ServedStudent
from service.metrics import Metrics
from service.runtime.heads import Floats
from service.runtime.joined import State

# sha256 of what is done with a text where it is too long, and of the text
PassageKey = NewType("PassageKey", bytes)
# of an entry beside its numbers: the key, the objects that hold it together, its place in the order of use
ENTRY_BYTES = 640
# of each array beyond an entry's first
STATE_BYTES = 128


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of an input.

    Attributes:
        tokens: how many it has, special tokens included.
        kept: how many different ones were read.
        chunks: in how many pieces.
        billed: tokens of all pieces together.
    """

    tokens: int
    kept: int
    chunks: int
    billed: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """A passage's embeddings of length 1, float32 [chunks, D], where they left the student, and what was read."""

    vectors: Floats
    exit_index: int
    reading: Reading

    @property
    def nbytes(self) -> int:
        """What keeping it takes."""
        return self.vectors.nbytes + ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Stated:
    """A passage's states as the stages that read one text wrote them, [tokens, S] or [S] of each chunk, each chunk's
    tokens, and what was read."""

    states: tuple[State, ...]
    billed: tuple[int, ...]
    reading: Reading

    @property
    def nbytes(self) -> int:
        """What keeping it takes."""
        return sum(state.nbytes + STATE_BYTES for state in self.states) + ENTRY_BYTES


Entry = TypeVar("Entry", Embedded, Stated)


class PassageCache:
    """What passages gave, by student version and passage; what was not used for longest goes first.

    Owner: event loop.
    Invariant: the entries take no more than `max_bytes`, all versions together.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._entries: OrderedDict[tuple[ServedStudent, PassageKey], Embedded | Stated] = OrderedDict()
        self._bytes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"PassageCache(entries={len(self._entries)}, bytes={self.nbytes})"

    @property
    def nbytes(self) -> int:
        """What all entries take."""
        return sum(self._bytes.values())

    def get(self, student: ServedStudent, keys: Sequence[PassageKey], kind: type[Entry]) -> dict[PassageKey, Entry]:
        """The entries that are there, each now used last.

        Args:
            kind: of a student's entries, which are all of one.
        """
        found: dict[PassageKey, Entry] = {}
        entries = self._entries
        for key in keys:
            place = (student, key)
            entry = entries.get(place)
            if isinstance(entry, kind):
                entries.move_to_end(place)
                found[key] = entry
        hits = sum(key in found for key in keys)
        self._metrics.cache_hits.labels(student.name).inc(hits)
        self._metrics.cache_misses.labels(student.name).inc(len(keys) - hits)
        return found

    def put(self, student: ServedStudent, entries: Iterable[tuple[PassageKey, Embedded | Stated]]) -> None:
        """Keep some more; one that alone is over the bound is not kept."""
        for key, entry in entries:
            if entry.nbytes <= self._max_bytes and (student, key) not in self._entries:
                self._entries[student, key] = entry
                self._count(student, entry.nbytes)
        changed = {student.name}
        while self.nbytes > self._max_bytes:
            (oldest, _), entry = self._entries.popitem(last=False)
            self._count(oldest, -entry.nbytes)
            changed.add(oldest.name)
        self._tell(changed)

    def drop(self, student: ServedStudent) -> None:
        """Forget a version that is no longer in service."""
        for place in [place for place in self._entries if place[0] is student]:
            self._count(student, -self._entries.pop(place).nbytes)
        self._tell({student.name})

    def _count(self, student: ServedStudent, count: int) -> None:
        self._bytes[student.name] = self._bytes.get(student.name, 0) + count

    def _tell(self, models: Iterable[str]) -> None:
        for model in models:
            self._metrics.cache_bytes.labels(model).set(self._bytes.get(model, 0))


def passage_keys(texts: Sequence[str], truncate: str) -> list[PassageKey]:
    """The keys of passages."""
    treatment = truncate.encode() + b"\0"
    return [PassageKey(hashlib.sha256(treatment + text.encode()).digest()) for text in texts]
