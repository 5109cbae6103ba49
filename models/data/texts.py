"""From the files of an embed recipe to its splits: texts to learn from, texts to judge on, pairs with scores.

A text's place is the hash of its words, as in `cuts`: a row that was once in `gate` stays there in every refresh.
Nothing to learn from equals a text of gate, dev, test or the neighbours' test file; with `joined`, rows made of several
neighbouring texts of one source are added to those.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.data.cuts import place_of
from models.data.read import read_rows, read_scored_pairs, read_texts
from models.data.rows import Row, ScoredPair, SourcedText, group_key
from models.data.sources import file_source
from models.errors import DataInvalid, RecipeInvalid
from models.recipe.embed import EmbedData, EmbedRecipe
from models.recipe.parts import digest_of
from service.bundle.manifest import DataSource

FEWEST_TEXTS = 32
FEWEST_PAIRS = 10
FEWEST_NEIGHBOURS = 10
_JOIN_SEED = 7


@dataclass(frozen=True, slots=True)
class NeighbourRows:
    """Labelled rows of the nearest-neighbour comparison."""

    fit: tuple[Row, ...]
    test: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class EmbedSplits:
    """The texts and pairs of a refresh, in file order.

    Invariant: no text of `train`, joined or not, has the words of one in `gate`, `dev`, `test` or `neighbours.test`.
    `notes` say what was taken out; neither they nor `sources` hold a path.
    """

    train: tuple[str, ...]
    gate: tuple[str, ...]
    dev: tuple[ScoredPair, ...]
    test: tuple[ScoredPair, ...]
    neighbours: NeighbourRows | None
    notes: tuple[str, ...]
    sources: tuple[DataSource, ...]

    def digests(self) -> dict[str, str]:
        """sha256 of each split's texts and scores, in order."""
        return {
            "train": digest_of(list(self.train)),
            "gate": digest_of(list(self.gate)),
            "dev": digest_of([[pair.text, pair.text_pair, pair.score] for pair in self.dev]),
            "test": digest_of([[pair.text, pair.text_pair, pair.score] for pair in self.test]),
        }


def prepare_texts(recipe: EmbedRecipe) -> EmbedSplits:
    """Read the recipe's files and cut them. A pure function of `recipe.data` and the files' bytes.

    Raises:
        RecipeInvalid: one file in two roles.
        DataInvalid: a bad line; too few texts, pairs or neighbours; scores that are all the same.
    """
    data = recipe.data
    pairs = {role: _pairs(role, Path(getattr(data, role))) for role in ("dev", "test")}
    neighbours = None if data.neighbours is None else _neighbours(data.neighbours.fit, data.neighbours.test)
    read = [read_texts(Path(each.file), sources=each.sources) for each in data.texts]
    sources = _sources(data, read, pairs, neighbours)
    notes: list[str] = []
    barred = _barred(pairs, neighbours)
    train, gate = _cut(read, data, barred, notes)
    joined = _joined(train, data, barred | {_key(each.text) for each in gate})
    if joined:
        notes.append(f"{len(joined):,} rows made of 2 to {data.join_at_most} neighbouring texts of one source")
    return EmbedSplits(
        train=(*(each.text for each in train), *joined),
        gate=tuple(each.text for each in gate),
        dev=tuple(pairs["dev"]),
        test=tuple(pairs["test"]),
        neighbours=neighbours,
        notes=tuple(notes),
        sources=sources,
    )


def _pairs(role: str, file: Path) -> list[ScoredPair]:
    pairs = read_scored_pairs(file)
    if len(pairs) < FEWEST_PAIRS or len({pair.score for pair in pairs}) < 2:
        raise DataInvalid(
            f"{file}: data.{role}: {len(pairs)} pairs with {len({pair.score for pair in pairs})} different scores; "
            f"a correlation needs at least {FEWEST_PAIRS} pairs and two scores"
        )
    return pairs


def _neighbours(fit: str, test: str) -> NeighbourRows:
    read = (read_rows(Path(file), task="classify", labels="required") for file in (fit, test))
    rows = NeighbourRows(*(tuple(each) for each in read))
    for each in (*rows.fit[:1], *rows.test[:1]):
        if each.text_pair is not None:
            raise DataInvalid(f"{each.file}:{each.line}: field 'text_pair': neighbours are single texts")
    if len(rows.fit) < FEWEST_NEIGHBOURS:
        raise DataInvalid(f"{fit}: data.neighbours.fit: {len(rows.fit)} rows; at least {FEWEST_NEIGHBOURS}")
    return rows


def _key(text: str) -> str:
    return group_key(Row(text))


def _barred(pairs: dict[str, list[ScoredPair]], neighbours: NeighbourRows | None) -> set[str]:
    """The words of everything that nobody may learn from."""
    held_out = [text for of_role in pairs.values() for pair in of_role for text in (pair.text, pair.text_pair)]
    held_out += [] if neighbours is None else [row.text for row in neighbours.test]
    return {_key(text) for text in held_out}


def _cut(
    read: Sequence[Sequence[SourcedText]], data: EmbedData, barred: set[str], notes: list[str]
) -> tuple[list[SourcedText], list[SourcedText]]:
    """Train and gate: each text once, none of them held out."""
    train: list[SourcedText] = []
    gate: list[SourcedText] = []
    seen: set[str] = set()
    dropped = 0
    for each in (each for of_file in read for each in of_file):
        key = _key(each.text)
        dropped += key in barred
        if key in barred or key in seen:
            continue
        seen.add(key)
        (gate if place_of(key) < data.gate.cut else train).append(each)
    for split, rows in (("train", train), ("gate", gate)):
        if len(rows) < FEWEST_TEXTS:
            raise DataInvalid(f"data.texts: {len(rows)} texts in {split} after the cut; at least {FEWEST_TEXTS}")
    total = sum(map(len, read))
    notes.append(
        f"{total:,} texts read; {dropped:,} dropped since dev, test or neighbours hold their words, "
        f"{total - dropped - len(train) - len(gate):,} as repeats"
    )
    return train, gate


def _joined(train: Sequence[SourcedText], data: EmbedData, held_out: set[str]) -> list[str]:
    """Long rows, each of neighbouring texts of one source; which ones is decided by the texts alone.

    One that has the words of a held-out text is left out.
    """
    wanted = round(data.joined * len(train))
    if not wanted:
        return []
    ordered = sorted(train, key=lambda each: each.source)  # stable: file order inside a source
    random = np.random.default_rng(_JOIN_SEED)
    begins = random.integers(0, len(ordered) - 1, wanted)
    counts = random.integers(2, data.join_at_most + 1, wanted)
    runs = (ordered[begin : begin + count] for begin, count in zip(begins, counts, strict=True))
    alike = ([each.text for each in run if each.source == run[0].source] for run in runs)
    rows = [" ".join(texts) for texts in alike if len(texts) > 1]
    return [row for row in rows if _key(row) not in held_out]


def _sources(
    data: EmbedData,
    read: Sequence[Sequence[SourcedText]],
    pairs: dict[str, list[ScoredPair]],
    neighbours: NeighbourRows | None,
) -> tuple[DataSource, ...]:
    found = [
        file_source(
            "train" if not each.sources else f"train ({', '.join(each.sources)})", each.file, len(rows), each.licence
        )
        for each, rows in zip(data.texts, read, strict=True)
    ]
    found += [file_source(role, getattr(data, role), len(rows), data.licence) for role, rows in pairs.items()]
    if data.neighbours is not None and neighbours is not None:
        found.append(file_source("neighbours, fit", data.neighbours.fit, len(neighbours.fit), "not stated"))
        found.append(file_source("neighbours, test", data.neighbours.test, len(neighbours.test), "not stated"))
    _distinct(found)
    return tuple(found)


def _distinct(sources: Iterable[DataSource]) -> None:
    held_out = {"dev", "test", "neighbours, test"}
    roles: dict[str, str] = {}
    for source in sources:
        other = roles.setdefault(source.sha256, source.role)
        if other != source.role and {other, source.role} & held_out:
            raise RecipeInvalid(
                f"data: {source.name} is both {other} and {source.role}; held-out rows need a file apart"
            )
