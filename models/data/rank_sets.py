"""One ranking data set as rankings: the list form as it stands, the corpus form joined from its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.data.corpus import Query, check_grade, read_candidates, read_corpus, read_qrels, read_queries
from models.data.lexical import Lexical
from models.data.read import read_rankings
from models.data.rows import LabelledPassage, RankRow
from models.data.sources import file_source
from models.errors import DataInvalid
from models.recipe.rank import Queries, RankSet
from service.bundle.manifest import DataSource


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query with its candidates, in the order of a first stage.

    `grades`: one for each of `passages`, 0 being not relevant. `missed`: relevant passages that are no candidates.
    `file` and `line` (1-based) say where the query was read. `dark`: how many of `passages`, the last
    ones, were made for training alone (`models.data.dark_examples`).
    """

    query: str
    passages: tuple[str, ...]
    grades: tuple[float, ...]
    missed: tuple[LabelledPassage, ...] = ()
    file: str = ""
    line: int = 0
    dark: int = 0

    @property
    def answered(self) -> bool:
        """Whether any passage is relevant; queries of which none is teach nothing, and have no MAP or MRR."""
        return bool(self.missed) or any(grade > 0 for grade in self.grades)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What a cross-encoder reads, one for each of `passages`."""
        return [(self.query, passage) for passage in self.passages]


@dataclass(frozen=True, slots=True)
class LoadedSet:
    """What the files of one set hold.

    `train` and `dev` are None where the set has none. `pool`: of the corpus form, the passages that training may show:
    none of them is relevant to queries of dev or tests only.
    """

    name: str
    train: tuple[Ranking, ...] | None
    dev: tuple[Ranking, ...] | None
    tests: Mapping[str, tuple[Ranking, ...]]
    pool: tuple[str, ...]
    sources: tuple[DataSource, ...]
    notes: tuple[str, ...] = ()


def load_set(settings: RankSet) -> LoadedSet:
    """Read every file of a set.

    Raises: DataInvalid: file, line and field of the first bad line.
    """
    over_corpus = None if settings.corpus is None else _OverCorpus(settings)
    sources = [] if over_corpus is None else [_source("corpus", settings, over_corpus.file, over_corpus.size)]
    found: dict[str, tuple[Ranking, ...]] = {}
    for key, named in settings.sources():
        if isinstance(named, Queries):
            assert over_corpus is not None
            found[key] = over_corpus.rankings(key)
        else:
            found[key] = listed_rankings(Path(named), held_out=key != "train")
        files = [named] if isinstance(named, str) else [file for _, file in named.files()]
        sources += [_source(key, settings, file, len(found[key])) for file in files]
    return LoadedSet(
        name=settings.name,
        train=found.get("train"),
        dev=found.get("dev"),
        tests={name: found[f"tests.{name}"] for name in settings.tests},
        pool=() if over_corpus is None else over_corpus.pool,
        sources=tuple(sources),
        notes=() if over_corpus is None else over_corpus.notes,
    )


def listed_rankings(path: Path, *, held_out: bool) -> tuple[Ranking, ...]:
    """Read the list form.

    Args:
        path: as `read_rankings`.
        held_out: whether every passage must have a grade; else all or none of a query's.
    Raises: DataInvalid: file, line and field of the first bad line.
    """
    return tuple(_listed(row, held_out=held_out) for row in read_rankings(path))


def _listed(row: RankRow, *, held_out: bool) -> Ranking:
    """A row of the list form. Raises: DataInvalid: some passages have a grade and some none, or one is out of range."""
    grades = []
    bare = all(passage.label is None for passage in row.passages)
    for at, passage in enumerate(row.passages):
        where = f"{row.file}:{row.line}: field 'passages[{at}]'"
        if passage.label is None and (held_out or not bare):
            raise DataInvalid(f"{where}: 'label' is missing")
        try:
            grades.append(check_grade(passage.label or 0.0))
        except ValueError as error:
            raise DataInvalid(f"{where}: 'label' {error}") from error
    return Ranking(row.query, tuple(p.text for p in row.passages), tuple(grades), (), row.file, row.line)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The files of one `Queries`."""

    queries: Mapping[str, Query]
    qrels: Mapping[str, Mapping[str, float]]
    candidates: Mapping[str, Sequence[str]] | None

    def relevant(self) -> set[str]:
        """The documents that are relevant to any query."""
        return {document for grades in self.qrels.values() for document, grade in grades.items() if grade > 0}


@dataclass(slots=True)
class _Index:
    """A BM25 over some documents, made when it is first asked."""

    ids: list[str]
    texts: list[str]
    _made: Lexical | None = field(default=None)

    def best(self, query: str, count: int) -> list[str]:
        """The ids of the best documents."""
        if self._made is None:
            self._made = Lexical(self.texts)
        return [self.ids[place] for place in self._made.best(query, count)]


class _OverCorpus:
    """A set in the corpus form.

    Documents that are relevant to held-out queries and to no training query are kept from training altogether: they
    are neither candidates nor random negatives there.
    """

    def __init__(self, settings: RankSet) -> None:
        assert settings.corpus is not None
        self._settings = settings
        self._corpus = read_corpus(Path(settings.corpus))
        self._asked = {key: self._read(named) for key, named in settings.sources() if isinstance(named, Queries)}
        trained = self._asked["train"].relevant() if "train" in self._asked else set()
        held_out = {d for key, asked in self._asked.items() if key != "train" for d in asked.relevant()}
        self._allowed = [each for each in self._corpus.documents if each not in held_out - trained]
        self._trainable = frozenset(self._allowed)
        self.file, self.size = settings.corpus, len(self._corpus.documents)
        self.notes = (
            f"{settings.name}: {self.size - len(self._allowed):,} of {self.size:,} documents are relevant to held-out "
            f"queries only and kept from training; {len(held_out & trained):,} are relevant to both kinds",
        )
        self._indices = {True: self._index(self._allowed), False: self._index(list(self._corpus.documents))}

    @property
    def pool(self) -> tuple[str, ...]:
        """The passages that training may show."""
        return tuple(self._shown(document) for document in self._allowed) if "train" in self._asked else ()

    def rankings(self, key: str) -> tuple[Ranking, ...]:
        """The queries of `key` in file order; one for which the first stage found nothing has no passages."""
        asked, index = self._asked[key], self._indices[key == "train"]
        found = []
        for name, query in asked.queries.items():
            if asked.candidates is None:
                listed: Sequence[str] = index.best(query.text, self._settings.depth)
            else:
                listed = self._given(asked.candidates.get(name, ()), training=key == "train")
            found.append(self._ranking(query, listed, asked.qrels.get(name, {})))
        return tuple(found)

    def _given(self, candidates: Sequence[str], *, training: bool) -> Sequence[str]:
        return [document for document in candidates if not training or document in self._trainable]

    def _ranking(self, query: Query, listed: Sequence[str], grades: Mapping[str, float]) -> Ranking:
        missed = [document for document, grade in grades.items() if grade > 0 and document not in set(listed)]
        return Ranking(
            query=query.text,
            passages=tuple(self._shown(document) for document in listed),
            grades=tuple(grades.get(document, 0.0) for document in listed),
            missed=tuple(LabelledPassage(self._shown(document), grades[document]) for document in missed),
            file=query.file,
            line=query.line,
        )

    def _read(self, named: Queries) -> _Asked:
        queries, documents = read_queries(Path(named.queries)), self._corpus.documents
        qrels = read_qrels(Path(named.qrels), queries=queries, corpus=documents)
        if named.candidates is None:
            return _Asked(queries, qrels, None)
        return _Asked(queries, qrels, read_candidates(Path(named.candidates), queries=queries, corpus=documents))

    def _index(self, ids: list[str]) -> _Index:
        documents = self._corpus.documents
        return _Index(ids, [f"{documents[each].title} {documents[each].text}" for each in ids])

    def _shown(self, document: str) -> str:
        found = self._corpus.documents[document]
        joined = self._settings.title == "join" and found.title
        return f"{found.title}. {found.text}" if joined else found.text


def _source(role: str, settings: RankSet, file: str, rows: int) -> DataSource:
    return file_source(f"{role}, {settings.name}", file, rows, settings.licence)
