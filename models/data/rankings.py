"""The splits of a rank recipe: queries cut once, by the permanent rule of `models.data.cuts`, and kept apart for good.

The unit is the query: its place is that of its words, so a query that was once held out stays held out. Queries of
train with the same words are one, and what is relevant to either is relevant to it. Passages are shared by queries:
one that a held-out query is about may be learned from where a training query of the same set is about it too.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.data.cuts import Split, place_of, split_at
from models.data.rank_sets import LoadedSet, Ranking, load_set
from models.data.rows import LabelledPassage, Row, group_key
from models.errors import DataInvalid, DataLeak, RecipeInvalid
from models.recipe.parts import Cut
from models.recipe.rank import RankData, RankRecipe
from service.bundle.manifest import DataSource

SMALLEST_TRAIN = 2
SMALLEST_POOL = 2


@dataclass(frozen=True, slots=True)
class TrainQueries:
    """One set's training queries: `answered` have a relevant passage, `unanswered` have none.

    `pool`: what random negatives are drawn from.
    """

    name: str
    answered: tuple[Ranking, ...]
    unanswered: tuple[Ranking, ...]
    pool: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankSplits:
    """The rankings of a refresh, in file order, set by set.

    Invariant: no query of train has the words of one of dev, calibration, gate or of a test.
    `digests`: for each split, the sha256 of its sorted queries with their passages and grades. `notes` say what was
    taken out and why; neither they nor `sources` hold a path.
    """

    train: tuple[TrainQueries, ...]
    dev: tuple[Ranking, ...]
    calibration: tuple[Ranking, ...]
    gate: tuple[Ranking, ...]
    tests: dict[str, tuple[Ranking, ...]]
    notes: tuple[str, ...]
    digests: dict[str, str]
    sources: tuple[DataSource, ...]

    @property
    def answered(self) -> tuple[Ranking, ...]:
        """All training queries with a relevant passage."""
        return tuple(ranking for each in self.train for ranking in each.answered)


@dataclass(frozen=True, slots=True)
class _Shares:
    """What is cut from one set's training queries; `dev` is None where the set has its own."""

    gate: Cut
    calibration: Cut
    dev: Cut | None


def prepare_rankings(recipe: RankRecipe) -> RankSplits:
    """Read the recipe's files and cut the training queries. A pure function of `recipe.data` and the files' bytes.

    Raises:
        RecipeInvalid: one file in two roles.
        DataInvalid: a bad line; too few queries or passages; a cut that holds none.
        DataLeak: more than `data.allowed_overlap` of a dev or test file's queries occur in the training files.
    """
    data = recipe.data
    loaded = [load_set(settings) for settings in data.sets]
    _distinct_files(loaded)
    notes = [note for each in loaded for note in each.notes]
    tests = {name: rankings for each in loaded for name, rankings in each.tests.items()}
    held = {f"dev of {each.name}": each.dev for each in loaded if each.dev} | {f"test {n}": r for n, r in tests.items()}
    _check_overlap(held, loaded, data, notes)
    barred = {query_key(ranking) for rankings in held.values() for ranking in rankings}
    cut: dict[Split, list[Ranking]] = {"train": [], "dev": [], "calibration": [], "gate": []}
    train = []
    for each in loaded:
        if each.train is not None:
            of_set = _cut(each, data, barred, notes)
            train.append(_train_queries(each, of_set.pop("train"), notes))
            for split, rankings in of_set.items():
                cut[split] += rankings
    dev = [*cut["dev"], *(ranking for each in loaded for ranking in each.dev or ())]
    splits = {"dev": dev, "calibration": cut["calibration"], "gate": cut["gate"]} | {
        f"test {name}": list(rankings) for name, rankings in tests.items()
    }
    _check_sizes(train, splits)
    _note_unusual(splits, notes)
    everything = {**splits, "train": [r for each in train for r in (*each.answered, *each.unanswered)]}
    return RankSplits(
        train=tuple(train),
        dev=tuple(dev),
        calibration=tuple(cut["calibration"]),
        gate=tuple(cut["gate"]),
        tests=tests,
        notes=tuple(notes),
        digests={name: digest_of_rankings(rankings) for name, rankings in everything.items()},
        sources=tuple(source for each in loaded for source in each.sources),
    )


def query_key(ranking: Ranking) -> str:
    """sha256 (hex) of a query's words: queries of one key differ in punctuation at most."""
    return group_key(Row(ranking.query))


def digest_of_rankings(rankings: Iterable[Ranking]) -> str:
    """sha256 (hex) of the queries with their passages and grades, whatever their order."""
    entries = sorted(
        json.dumps([each.query, each.passages, each.grades, [[m.text, m.label] for m in each.missed]])
        for each in rankings
    )
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def rank_sources(splits: RankSplits) -> tuple[DataSource, ...]:
    """Which queries were held out, for a provenance: `sha256` is that of a split's rankings."""
    licences = "; ".join(dict.fromkeys(source.licence for source in splits.sources))
    return tuple(
        DataSource(
            role=f"{name} queries",
            name=f"{name} queries",
            sha256=splits.digests[name],
            rows=len(rankings),
            licence=licences,
        )
        for name, rankings in (("dev", splits.dev), ("calibration", splits.calibration), ("gate", splits.gate))
        if rankings
    )


def _distinct_files(loaded: Sequence[LoadedSet]) -> None:
    known: dict[str, str] = {}
    for source in (source for each in loaded for source in each.sources):
        if source.sha256 in known:
            roles = f"{known[source.sha256]} and {source.role}"
            raise RecipeInvalid(f"data.sets: {source.name}: is named as {roles}; each role needs its own queries")
        known[source.sha256] = source.role


def _check_overlap(
    held: dict[str, tuple[Ranking, ...]], loaded: Sequence[LoadedSet], data: RankData, notes: list[str]
) -> None:
    """Note the held-out queries that occur in train. Raises: DataLeak: more than the allowed share of a file's."""
    trained = {query_key(ranking): ranking for each in loaded for ranking in reversed(each.train or ())}
    for role, rankings in held.items():
        shared = [(r, trained[key]) for r in rankings if (key := query_key(r)) in trained]
        share = len(shared) / len(rankings)
        if share > data.allowed_overlap:
            examples = "; ".join(f"{a.file}:{a.line} = {b.file}:{b.line}" for a, b in shared[:2])
            raise DataLeak(
                f"data.sets: {role}: {len(shared):,} of its {len(rankings):,} queries ({share:.2%}) occur in train, "
                f"more than the allowed {data.allowed_overlap:.2%}: {examples}"
            )
        if shared:
            notes.append(f"{role}: {len(shared):,} of its {len(rankings):,} queries occur in train; taken out of train")


def _cut(each: LoadedSet, data: RankData, barred: set[str], notes: list[str]) -> dict[Split, list[Ranking]]:
    """The set's training queries by split, each once."""
    assert each.train is not None
    shares = _Shares(data.gate, data.calibration, data.dev if each.dev is None else None)
    merged = _merged([ranking for ranking in each.train if query_key(ranking) not in barred])
    if (repeats := len(each.train) - len(merged)) > 0:
        notes.append(f"{each.name}: {repeats:,} training queries repeat another, or a held-out one; joined or left out")
    cut: dict[Split, list[Ranking]] = {"train": [], "dev": [], "calibration": [], "gate": []}
    for ranking in merged:
        cut[split_at(place_of(query_key(ranking)), shares)].append(ranking)
    return cut


def _merged(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Queries of the same words as one: the first's query and order, and everything that is relevant to any of them."""
    groups: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault(query_key(ranking), []).append(ranking)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(group: Sequence[Ranking]) -> Ranking:
    first, best = group[0], dict[str, float]()
    for ranking in group:
        graded = [*zip(ranking.passages, ranking.grades, strict=True)]
        for text, grade in (*graded, *((each.text, each.label or 0.0) for each in ranking.missed)):
            best[text] = max(grade, best.get(text, 0.0))
    passages = tuple(dict.fromkeys(text for ranking in group for text in ranking.passages))
    missed = tuple(LabelledPassage(text, grade) for text, grade in best.items() if grade > 0 and text not in passages)
    return Ranking(first.query, passages, tuple(best[text] for text in passages), missed, first.file, first.line)


def _train_queries(each: LoadedSet, rankings: Sequence[Ranking], notes: list[str]) -> TrainQueries:
    answered = tuple(ranking for ranking in rankings if ranking.answered)
    unanswered = tuple(ranking for ranking in rankings if not ranking.answered)
    if unanswered:
        notes.append(
            f"{each.name}: {len(unanswered):,} of {len(rankings):,} training queries have no relevant passage; "
            "the teacher is not trained on them"
        )
    listed = (passage for ranking in rankings for passage in ranking.passages)
    pool = tuple(dict.fromkeys((*each.pool, *listed)))
    if len(pool) < SMALLEST_POOL:
        raise DataInvalid(f"data.sets: {each.name}: {len(pool)} passages to train on after the cuts, too few to rank")
    return TrainQueries(each.name, answered, unanswered, pool)


def _check_sizes(train: Sequence[TrainQueries], splits: dict[str, list[Ranking]]) -> None:
    answered = sum(len(each.answered) for each in train)
    if answered < SMALLEST_TRAIN:
        raise DataInvalid(f"data.sets: {answered} training queries with a relevant passage after the cuts, too few")
    for name, rankings in splits.items():
        if name != "calibration" and not any(ranking.answered for ranking in rankings):
            raise DataInvalid(f"data.{name}: holds no query with a relevant passage")


def _note_unusual(splits: dict[str, list[Ranking]], notes: list[str]) -> None:
    for name, rankings in splits.items():
        empty = sum(not ranking.passages for ranking in rankings)
        if empty:
            notes.append(f"{name}: {empty:,} of {len(rankings):,} queries have no candidates")
        bare = sum(not ranking.answered for ranking in rankings)
        if bare:
            notes.append(
                f"{name}: {bare:,} of {len(rankings):,} queries have no relevant passage; they count for agreement "
                "with the teacher, not for nDCG, MRR, MAP or recall"
            )
