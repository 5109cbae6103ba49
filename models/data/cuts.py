"""The splits of a recipe: cut once, by a permanent rule, and kept apart for good.

Where a row of the training file goes is a function of its words alone (not of the recipe's seed, nor, unless
`parts` is on, of the other rows), so a row that was once held out is held out in every later refresh:

    place = sha256("understudy-split-1" + group key) as a number in [0, 1)
    gate: place < gate.cut   calibration: place >= 1 - calibration.cut   dev: 0.5 <= place < 0.5 + dev.cut   else train

Each interval grows from its own fixed end, so a changed share moves rows between train and that split only.
Rows with the same words (they differ in case, space or punctuation) are one group; a held-out split keeps the longest
of it. With `parts: first-text` the key is that of a pair's first text. With `parts: substrings` only whole texts
(their words are no run of another row's) of at least three words are held out, and a row whose words are a run of a
held-out text's is in no split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from models.data.parts import PartIndex, whole_texts
from models.data.read import read_rows, read_texts
from models.data.rows import Row, group_key, row_key, words
from models.data.sources import file_source
from models.errors import DataInvalid, DataLeak, RecipeInvalid
from models.recipe.classify import ClassifyRecipe, Data
from models.recipe.parts import Cut, RowsFile, files_of
from service.bundle.manifest import DataSource

SALT = "understudy-split-1"
WHOLE_WORDS = 3
SMALLEST_CLASS = 2

_LICENCES = "those of its files"

Split = Literal["train", "dev", "calibration", "gate"]


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of a refresh, in file order.

    Invariant: no text of dev, calibration, gate or test occurs in another split or in `unlabelled`; the one exception
    is a text that the dev file and the test file share, which is counted in `notes`.
    `labels` are those of the training file, sorted. `digests` is, for each split, the sha256 of its sorted keys
    and labels. `notes` say what was taken out and why; neither they nor `sources` hold a path.
    """

    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    calibration: tuple[Row, ...]
    gate: tuple[Row, ...]
    test: tuple[Row, ...]
    unlabelled: tuple[str, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    digests: dict[str, str]
    sources: tuple[DataSource, ...]

    def held_out_keys(self) -> frozenset[str]:
        """The group keys of dev, calibration, gate and test: what nothing made for training may equal."""
        return frozenset(_keys((*self.dev, *self.calibration, *self.gate, *self.test)))


@dataclass(frozen=True, slots=True)
class _Files:
    """The rows of each file of the recipe; `dev` is None where it is cut."""

    train: list[Row]
    dev: list[Row] | None
    test: list[Row]
    unlabelled: list[Row]
    sources: tuple[DataSource, ...]


def prepare(recipe: ClassifyRecipe) -> Splits:
    """Read the recipe's files and cut them into splits. A pure function of `recipe.data` and the files' bytes.

    Raises:
        RecipeInvalid: one file in two roles, or a task that has no splits.
        DataInvalid: a bad line; fewer than two labels, a label too rare or unknown; a cut without rows.
        DataLeak: more than `data.allowed_overlap` of the dev or test file occurs in the training file.
    """
    if recipe.task != "classify":
        raise RecipeInvalid(f"task: only classify data are cut into splits, not {recipe.task}")
    files = _read_files(recipe.data)
    notes: list[str] = []
    rows = _kept_from_train(files, recipe.data, notes)
    rows = _one_label_a_text(rows, notes)
    cut = _cut(rows, recipe.data, notes)
    dev = cut["dev"] if files.dev is None else files.dev
    held_out = [*dev, *cut["calibration"], *cut["gate"], *files.test]
    unlabelled = _unlabelled(files.unlabelled, held_out, cut["train"], recipe.data, notes)
    splits = {**cut, "dev": dev, "test": files.test}
    labels = _labels(files.train, splits, recipe.data)
    digests = {name: _digest(rows) for name, rows in splits.items()} | {"unlabelled": _digest(unlabelled)}
    return Splits(
        **{name: tuple(rows) for name, rows in splits.items()},
        unlabelled=tuple(row.text for row in unlabelled),
        labels=labels,
        notes=tuple(notes),
        digests=digests,
        sources=files.sources,
    )


def split_sources(splits: Splits) -> tuple[DataSource, ...]:
    """Which rows were held out, for a provenance: `sha256` is that of a split's sorted keys and labels.

    The roles are "dev rows", "calibration rows" and "gate rows".
    """
    train, dev = (_of_role(splits.sources, role) for role in ("train", "dev"))
    files = {"dev": dev or train, "calibration": train, "gate": train}
    return tuple(
        DataSource(
            role=f"{split} rows",
            name=" + ".join(source.name for source in of_split),
            sha256=splits.digests[split],
            rows=len(getattr(splits, split)),
            licence=of_split[0].licence if len({source.licence for source in of_split}) == 1 else _LICENCES,
        )
        for split, of_split in files.items()
    )


def _of_role(sources: Sequence[DataSource], role: str) -> list[DataSource]:
    """The files of a role, one or several."""
    return [source for source in sources if source.role.split(" ")[0] == role]


def without(splits: Splits, dropped: Collection[tuple[str, int]], note: str) -> Splits:
    """The splits without some rows of train, named by file and line, and with a note about it.

    Invariant: the held-out splits and the labels stay.
    """
    train = tuple(row for row in splits.train if (row.file, row.line) not in dropped)
    digests = splits.digests | {"train": _digest(train)}
    return replace(splits, train=train, digests=digests, notes=(*splits.notes, note))


def place_of(group: str) -> float:
    """The place in [0, 1) of a group."""
    digest = hashlib.sha256(f"{SALT}{group}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


class Shares(Protocol):
    """What of a recipe's data decides where rows go; `dev` is no `Cut` where it has files of its own."""

    @property
    def gate(self) -> Cut:
        """The share from the near end."""
        ...

    @property
    def calibration(self) -> Cut:
        """The share from the far end."""
        ...

    @property
    def dev(self) -> object:
        """The share from the middle."""
        ...


def split_at(place: float, data: Shares) -> Split:
    """The split at a place of [0, 1), as the head of this file says."""
    if place < data.gate.cut:
        return "gate"
    if place >= 1 - data.calibration.cut:
        return "calibration"
    if isinstance(data.dev, Cut) and 0.5 <= place < 0.5 + data.dev.cut:
        return "dev"
    return "train"


def _read_files(data: Data) -> _Files:
    roles = {"train": data.train, "test": data.test} | ({} if isinstance(data.dev, Cut) else {"dev": data.dev})
    sources: dict[str, DataSource] = {}
    rows: dict[str, list[Row]] = {}
    for name, files in roles.items():
        rows[name] = []
        for (role, _), each in zip(role_files(name, files), files_of(files), strict=True):
            found = _renamed(read_rows(Path(each.file), task="classify", labels="required"), each.labels)
            rows[name] += found
            sources[role] = file_source(role, each.file, len(found), each.licence or data.licence)
            _distinct_file(role, sources)
    _alike(rows, data)
    unlabelled: list[Row] = []
    for number, pool in enumerate(data.unlabelled):
        texts = [
            Row(each.text, file=each.file, line=each.line) for each in read_texts(Path(pool.file), sources=pool.sources)
        ]
        sources[f"unlabelled.{number}"] = file_source("unlabelled", pool.file, len(texts), pool.licence)
        unlabelled += texts
    return _Files(rows["train"], rows.get("dev"), rows["test"], unlabelled, tuple(sources.values()))


def role_files(role: str, files: str | tuple[RowsFile, ...]) -> list[tuple[str, str]]:
    """The files of a role, each with its role in a provenance: `train`, or `train 1`, `train 2` and so on."""
    named = files_of(files)
    return [(role if len(named) == 1 else f"{role} {at}", each.file) for at, each in enumerate(named, start=1)]


def _renamed(rows: list[Row], labels: Mapping[str, str]) -> list[Row]:
    """The rows with their labels by the names used here. Raises: DataInvalid: a name no row has."""
    known = {row.label for row in rows}
    for label in labels:
        if label not in known:
            raise DataInvalid(f"{rows[0].file}: data: labels: {label!r} is to be renamed, and no row has it")
    return [replace(row, label=labels.get(row.label or "", row.label)) for row in rows]


def _distinct_file(role: str, sources: dict[str, DataSource]) -> None:
    for other, source in sources.items():
        if other != role and source.sha256 == sources[role].sha256:
            raise RecipeInvalid(f"data.{role}: {source.name} is the {other} file too; each role needs its own rows")


def _alike(rows: dict[str, list[Row]], data: Data) -> None:
    paired = rows["train"][0].text_pair is not None
    for role, of_role in rows.items():
        if (of_role[0].text_pair is not None) != paired:
            raise DataInvalid(f"{of_role[0].file}: field 'text_pair': {role} and train must both have it or neither")
    if paired and data.parts == "substrings":
        raise RecipeInvalid("data.parts: substrings is for single texts, and the rows of train are pairs")
    if data.parts == "first-text" and not paired:
        raise RecipeInvalid("data.parts: first-text is for pairs, and the rows of train are single texts")


def _kept_from_train(files: _Files, data: Data, notes: list[str]) -> list[Row]:
    """The training file less the rows of the held-out files. Raises: DataLeak."""
    rows = files.train
    held_out = {"test": files.test} | ({"dev": files.dev} if files.dev is not None else {})
    for role, held in held_out.items():
        shared = _overlap(role, held, files.train, "train", data)
        before, keys = len(rows), _keys(held)
        rows = [row for row in rows if group_key(row) not in keys]
        if shared:
            notes.append(
                f"{shared:,} of the {len(held):,} {role} rows occur in the training file "
                f"({shared / len(held):.2%}); {before - len(rows):,} rows taken out of train"
            )
    if files.dev is not None and (shared := _overlap("dev", files.dev, files.test, "test", data)):
        notes.append(f"{shared:,} of the {len(files.dev):,} dev rows occur in the test file; left in both")
    return rows


def _overlap(role: str, held: list[Row], others: list[Row], others_role: str, data: Data) -> int:
    """How many rows of `held` occur among `others`. Raises: DataLeak: more than the allowed share."""
    first = {group_key(row): row for row in reversed(others)}
    shared = [(row, first[key]) for row in held if (key := group_key(row)) in first]
    if len(shared) > data.allowed_overlap * len(held):
        examples = "; ".join(f"{a.file}:{a.line} = {b.file}:{b.line}" for a, b in shared[:2])
        raise DataLeak(
            f"data.{role}: {len(shared):,} of its {len(held):,} rows ({len(shared) / len(held):.2%}) occur in "
            f"{others_role}, more than the allowed {data.allowed_overlap:.2%}: {examples}"
        )
    return len(shared)


def _one_label_a_text(rows: list[Row], notes: list[str]) -> list[Row]:
    """Rows whose text has several labels keep its most frequent one; where two are most frequent, all are dropped."""
    votes: dict[str, Counter[str | None]] = defaultdict(Counter)
    for row in rows:
        votes[row_key(row)][row.label] += 1
    chosen: dict[str, str | None] = {}
    for key, counts in votes.items():
        (label, most), *others = counts.most_common(2)
        if not others or others[0][1] < most:
            chosen[key] = label
    kept = [row for row in rows if (key := row_key(row)) in chosen and chosen[key] == row.label]
    conflicts = sum(len(counts) > 1 for counts in votes.values())
    if conflicts:
        notes.append(f"{conflicts:,} training texts have several labels; {len(rows) - len(kept):,} rows dropped")
    return kept


def _cut(rows: list[Row], data: Data, notes: list[str]) -> dict[str, list[Row]]:
    may_hold_out = _whole(rows, notes) if data.parts == "substrings" else lambda row: True
    cut: dict[str, list[Row]] = {"train": [], "dev": [], "calibration": [], "gate": []}
    for row in rows:
        cut[split_at(place_of(family_of(row, data)), data) if may_hold_out(row) else "train"].append(row)
    held_out = [row for split in ("dev", "calibration", "gate") for row in cut[split]]
    if data.parts == "substrings":
        cut["train"] = _without_parts(cut["train"], held_out, notes)
    for split in ("dev", "calibration", "gate"):
        cut[split] = _distinct(cut[split])
        if not cut[split] and not (split == "dev" and not isinstance(data.dev, Cut)):
            raise DataInvalid(
                f"{_first_file(data)}: data.{split}: the cut holds no rows; the file is too small for its share"
            )
    repeats = len(held_out) - sum(len(cut[split]) for split in ("dev", "calibration", "gate"))
    if repeats:
        notes.append(f"{repeats:,} repeated rows dropped from the cut splits")
    return cut


def family_of(row: Row, data: Data) -> str:
    """The key of what is cut together: rows of the same words or, of pairs, of the same first text."""
    return group_key(Row(row.text) if data.parts == "first-text" else row)


def _whole(rows: list[Row], notes: list[str]) -> Callable[[Row], bool]:
    whole = {text for text in whole_texts(row.text for row in rows) if len(text.split()) >= WHOLE_WORDS}
    notes.append(f"{len(whole):,} whole texts of at least {WHOLE_WORDS} words; only they may be held out")
    return lambda row: words(row.text) in whole


def _without_parts(train: list[Row], held_out: list[Row], notes: list[str]) -> list[Row]:
    index = PartIndex(row.text for row in train)
    parts = {part for row in held_out for part in index.parts_of(row.text)}
    kept = [row for row in train if words(row.text) not in parts]
    notes.append(f"{len(train) - len(kept):,} rows dropped from train as parts of held-out texts")
    return kept


def _unlabelled(texts: list[Row], held_out: list[Row], train: list[Row], data: Data, notes: list[str]) -> list[Row]:
    """Each text once, without those of train, and without held-out ones (with `parts`: nor parts or wholes of them), on
    either side where the rows are pairs."""
    if not texts:
        return []
    barred = _keys(_apart(held_out))
    if data.parts == "substrings":
        barred |= _related(texts, held_out)
    keyed: dict[str, Row] = {}
    for row in texts:
        keyed.setdefault(group_key(row), row)
    known = _keys(_apart(train))
    kept = [row for key, row in keyed.items() if key not in barred and key not in known]
    notes.append(
        f"unlabelled: {len(texts):,} texts, {len(kept):,} kept; {len(barred & keyed.keys()):,} dropped as held out, "
        "the others as repeats or training texts"
    )
    return kept


def _apart(rows: list[Row]) -> list[Row]:
    """The rows, of pairs each text by itself: a pool's text must be none of a held-out pair's."""
    return [Row(text) for row in rows for text in (row.text, row.text_pair) if text is not None]


def _related(texts: list[Row], held_out: list[Row]) -> set[str]:
    """The groups of `texts` that are parts of held-out texts, or hold one of at least three words."""
    index = PartIndex(row.text for row in texts)
    inner = PartIndex(row.text for row in held_out if len(words(row.text).split()) >= WHOLE_WORDS)
    parts = {group_key(Row(part)) for row in held_out for part in index.parts_of(row.text)}
    return parts | {group_key(row) for row in texts if inner.parts_of(row.text)}


def _labels(train_file: list[Row], splits: dict[str, list[Row]], data: Data) -> tuple[str, ...]:
    """The labels of the training file, sorted. Raises: DataInvalid: too few, too rare, or unknown in another split."""
    labels = sorted({row.label for row in train_file if row.label is not None})
    if len(labels) < 2:
        raise DataInvalid(f"{_first_file(data)}: only one label, {labels[0]!r}; a classifier needs at least two")
    left = Counter(row.label for row in splits["train"])
    for label in labels:
        if left[label] < SMALLEST_CLASS:
            raise DataInvalid(
                f"{_first_file(data)}: label {label!r} has {left[label]} rows in train after the cuts; "
                f"each needs at least {SMALLEST_CLASS}"
            )
    for role in ("dev", "test"):
        for row in splits[role]:
            if row.label not in left:
                raise DataInvalid(f"{row.file}:{row.line}: field 'label': {row.label!r} does not occur in train")
    return tuple(labels)


def _first_file(data: Data) -> str:
    return files_of(data.train)[0].file


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Of each group the longest row (the first of equals), in file order."""
    chosen: dict[str, int] = {}
    for place, row in enumerate(rows):
        best = chosen.setdefault(group_key(row), place)
        if len(row.text) > len(rows[best].text):
            chosen[group_key(row)] = place
    return [rows[place] for place in sorted(chosen.values())]


def _keys(rows: Iterable[Row]) -> set[str]:
    return {group_key(row) for row in rows}


def _digest(rows: Iterable[Row]) -> str:
    entries = sorted(f"{row_key(row)} {row.label or ''}" for row in rows)
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()
