"""The splits of an embedder: which texts are learned from, which are held out, and what is refused."""

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.rows import Row, group_key
from models.data.texts import EmbedSplits, prepare_texts
from models.errors import DataInvalid, RecipeInvalid
from models.recipe.embed import EmbedRecipe

TEXTS = [f"text number {at} of many" for at in range(200)]
PAIRS = [{"text": f"left {at}", "text_pair": f"right {at}", "score": at % 5} for at in range(20)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Place:
    """A folder of files and the recipe of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.data: dict[str, Any] = {
            "texts": [self.texts("texts.jsonl", TEXTS)],
            "dev": write(folder / "dev.jsonl", PAIRS),
            "test": write(folder / "test.jsonl", [{**pair, "score": pair["score"] + 1} for pair in PAIRS]),
            "gate": {"cut": 0.3},
        }

    def texts(self, name: str, texts: Sequence[str], **more: Any) -> str:
        return write(self.folder / name, [{"text": text, **more} for text in texts])

    def splits(self, **more: Any) -> EmbedSplits:
        document = {"schema": 1, "name": "near", "task": "embed", "data": self.data | more}
        document |= {"student": {"initialise": "random"}, "distil": {"objectives": [{"cosine": {}}]}}
        return prepare_texts(EmbedRecipe.model_validate(document))

    def refused(self, kind: type[Exception], says: str, **more: Any) -> None:
        with pytest.raises(kind, match=re.escape(says)) as caught:
            self.splits(**more)
        assert "\n" not in str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data")


def keys(texts: Sequence[str]) -> set[str]:
    return {group_key(Row(text)) for text in texts}


def test_every_text_goes_to_train_or_gate_in_file_order(place: Place) -> None:
    splits = place.splits()
    assert sorted((*splits.train, *splits.gate)) == sorted(TEXTS)
    assert 30 < len(splits.gate) < 90
    for part in (splits.train, splits.gate):
        assert [TEXTS.index(text) for text in part] == sorted(TEXTS.index(text) for text in part)
    assert (len(splits.dev), len(splits.test), splits.neighbours) == (20, 20, None)
    assert splits.dev[3].score == 3.0


def test_a_text_keeps_its_place_when_others_come_and_go(place: Place) -> None:
    before = set(place.splits().gate)
    place.texts("texts.jsonl", [*(f"new text {at}" for at in range(100)), *TEXTS[50:]])
    after = set(place.splits().gate)
    assert after & set(TEXTS[50:]) == before & set(TEXTS[50:])


def test_both_texts_of_a_pair_are_learned_from(place: Place) -> None:
    pairs = [{"text": f"one {at}", "text_pair": f"other {at}", "score": 1} for at in range(100)]
    splits = place.splits(texts=[write(place.folder / "pairs.jsonl", pairs)])
    assert {text for pair in pairs for text in (pair["text"], pair["text_pair"])} == {*splits.train, *splits.gate}


def test_a_held_out_text_is_dropped_from_the_training_texts_and_noted(place: Place) -> None:
    """Whatever its case and punctuation, whichever side of its pair, whether dev or test."""
    place.texts("texts.jsonl", [*TEXTS, "LEFT 3!", "right-7", "Right 19?"])
    splits = place.splits()
    assert sorted((*splits.train, *splits.gate)) == sorted(TEXTS)
    assert "203 texts read; 3 dropped since dev, test or neighbours hold their words, 0 as repeats" in splits.notes


def test_repeats_are_learned_once(place: Place) -> None:
    place.texts("texts.jsonl", [*TEXTS, TEXTS[0], TEXTS[1].upper(), f"{TEXTS[2]}?!"])
    splits = place.splits()
    assert sorted((*splits.train, *splits.gate)) == sorted(TEXTS)
    assert any("0 dropped since" in note and "3 as repeats" in note for note in splits.notes)


def near(place: Place, **more: Any) -> dict[str, str]:
    fit = [{"text": f"fit {at}", "label": "ab"[at % 2]} for at in range(12)]
    test = [{"text": f"near {at}", "label": "ab"[at % 2]} for at in range(4)]
    return {"fit": write(place.folder / "fit.jsonl", fit), "test": write(place.folder / "near.jsonl", test)} | more


def test_neighbours_test_texts_are_held_out_and_fit_texts_are_not(place: Place) -> None:
    neighbours = near(place)
    place.texts("texts.jsonl", [*TEXTS, "near 2", "fit 2"])
    splits = place.splits(neighbours=neighbours)
    assert "near 2" not in {*splits.train, *splits.gate}
    assert "fit 2" in {*splits.train, *splits.gate}
    assert splits.neighbours is not None
    assert [row.label for row in splits.neighbours.test] == ["a", "b", "a", "b"]
    assert [source.role for source in splits.sources][-2:] == ["neighbours, fit", "neighbours, test"]


def test_only_the_named_sources_are_read(place: Place) -> None:
    rows = [{"text": text, "source": "wiki" if at % 2 else "web"} for at, text in enumerate(TEXTS)]
    file = write(place.folder / "texts.jsonl", rows)
    wiki = {"file": file, "sources": ["wiki"], "licence": "CC BY-SA"}
    splits = place.splits(texts=[wiki], gate={"cut": 0.45})
    assert {*splits.train, *splits.gate} == set(TEXTS[1::2])
    assert (splits.sources[0].role, splits.sources[0].licence, splits.sources[0].rows) == (
        "train (wiki)",
        "CC BY-SA",
        100,
    )
    both = place.splits(texts=[{"file": file, "sources": [name]} for name in ("web", "wiki")])
    assert {*both.train, *both.gate} == set(TEXTS)


def test_sources_name_files_but_not_where_they_lie(place: Place) -> None:
    splits = place.splits(licence="made here")
    assert [(source.role, source.name, source.rows) for source in splits.sources] == [
        ("train", "data/texts.jsonl", 200),
        ("dev", "data/dev.jsonl", 20),
        ("test", "data/test.jsonl", 20),
    ]
    assert splits.sources[1].licence == "made here"
    assert not any(str(place.folder) in note for note in splits.notes)


def test_joined_rows_are_neighbouring_texts_of_one_source(place: Place) -> None:
    rows = [{"text": text, "source": "ab"[at % 2]} for at, text in enumerate(TEXTS)]
    write(place.folder / "texts.jsonl", rows)
    plain, splits = place.splits(), place.splits(joined=0.5, join_at_most=3)
    assert splits.train[: len(plain.train)] == plain.train
    assert splits.gate == plain.gate
    long = splits.train[len(plain.train) :]
    assert 0.4 * len(plain.train) < len(long) <= 0.5 * len(plain.train)
    by_source = {name: [text for text in plain.train if TEXTS.index(text) % 2 == at] for at, name in enumerate("ab")}
    runs = {
        " ".join(texts[at : at + count]) for texts in by_source.values() for count in (2, 3) for at in range(len(texts))
    }
    assert set(long) <= runs
    assert {len(text.split(" of many")) - 1 for text in long} == {2, 3}
    assert any(f"{len(long)} rows made of 2 to 3 neighbouring texts" in note for note in splits.notes)
    assert place.splits(joined=0.5, join_at_most=3) == splits


def test_texts_of_different_sources_are_never_joined(place: Place) -> None:
    rows = [{"text": text, "source": str(at)} for at, text in enumerate(TEXTS)]
    write(place.folder / "texts.jsonl", rows)
    assert place.splits(joined=1.0).train == place.splits().train


def test_a_joined_row_that_is_a_held_out_text_is_left_out(place: Place) -> None:
    """Words of which every neighbouring two are a test text."""
    words = [f"w{at}" for at in range(80)]
    place.texts("texts.jsonl", words)
    train = place.splits(gate={"cut": 0.49}).train
    rows = [{"text": f"{a} {b}!", "text_pair": f"{b} {a}", "score": len(a)} for a, b in itertools.pairwise(train)]
    rows[0]["score"] = 9
    splits = place.splits(gate={"cut": 0.49}, test=write(place.folder / "test.jsonl", rows), joined=1.0, join_at_most=2)
    assert splits.train == train


WORD = st.sampled_from(["red", "green", "blue", "Red!", "grün", "猫", "?", "é"])


@settings(max_examples=40)
@given(st.lists(st.lists(WORD, min_size=1, max_size=4).map(" ".join), max_size=60), st.floats(0, 1))
def test_nothing_learned_from_has_the_words_of_anything_held_out(texts: list[str], joined: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "data")
        place.texts("texts.jsonl", [*texts, *TEXTS])
        held_out = [{"text": text, "text_pair": f"{text} red", "score": at} for at, text in enumerate(texts[:10])]
        dev = write(place.folder / "dev.jsonl", [*PAIRS, *held_out])
        splits = place.splits(dev=dev, joined=joined, join_at_most=2)
    judged = [text for pair in (*splits.dev, *splits.test) for text in (pair.text, pair.text_pair)]
    assert not keys(splits.train) & keys([*judged, *splits.gate])
    assert not keys(splits.gate) & keys(judged)
    assert len(keys(splits.gate)) == len(splits.gate)


def test_digests_stand_for_texts_scores_and_their_order(place: Place) -> None:
    before = place.splits().digests()
    assert place.splits().digests() == before
    assert set(before) == {"train", "gate", "dev", "test"}
    write(place.folder / "dev.jsonl", [*PAIRS[:-1], {**PAIRS[-1], "score": 7}])
    changed = place.splits().digests()
    assert {name for name in before if before[name] != changed[name]} == {"dev"}


@pytest.mark.parametrize("role", ["dev", "test"])
@pytest.mark.parametrize(
    ("rows", "found"),
    [(PAIRS[:9], "9 pairs with 5"), ([{**pair, "score": 2} for pair in PAIRS], "20 pairs with 1")],
    ids=["few", "all alike"],
)
def test_pairs_that_give_no_correlation_are_refused(place: Place, role: str, rows: list, found: str) -> None:
    file = write(place.folder / f"{role}.jsonl", rows)
    place.refused(DataInvalid, f"{file}: data.{role}: {found} different scores; a correlation needs at least 10 pairs")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("score", None, "field 'score': missing"),
        ("score", True, "field 'score': must be a finite number"),
        ("score", "high", "field 'score': must be a number, is str"),
        ("text_pair", None, "field 'text_pair': missing"),
        ("text", "", "field 'text': is empty"),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(place: Place, field: str, value: object, says: str) -> None:
    file = write(place.folder / "test.jsonl", [*PAIRS[:12], {**PAIRS[12], field: value}, *PAIRS[13:]])
    place.refused(DataInvalid, f"{file}:13: {says}")


@pytest.mark.parametrize(("count", "cut", "split"), [(40, 0.49, "train"), (60, 0.01, "gate")])
def test_too_few_texts_are_refused(place: Place, count: int, cut: float, split: str) -> None:
    place.texts("texts.jsonl", TEXTS[:count])
    with pytest.raises(DataInvalid, match=rf"^data.texts: \d+ texts in {split} after the cut; at least 32$"):
        place.splits(gate={"cut": cut})


def test_a_source_that_no_row_has_is_refused(place: Place) -> None:
    file = place.texts("texts.jsonl", TEXTS, source="web")
    place.refused(
        DataInvalid,
        f"{file}: no row has a 'source' of wiki, books",
        texts=[{"file": file, "sources": ["wiki", "books"]}],
    )


def test_too_few_neighbours_are_refused(place: Place) -> None:
    file = write(place.folder / "few.jsonl", [{"text": f"fit {at}", "label": "a"} for at in range(9)])
    place.refused(DataInvalid, f"{file}: data.neighbours.fit: 9 rows; at least 10", neighbours=near(place, fit=file))


def test_neighbours_without_a_label_or_as_pairs_are_refused(place: Place) -> None:
    bare = write(place.folder / "bare.jsonl", [{"text": f"fit {at}"} for at in range(12)])
    place.refused(DataInvalid, f"{bare}:1: field 'label': missing", neighbours=near(place, fit=bare))
    rows = [{"text": f"fit {at}", "text_pair": "b", "label": "a"} for at in range(12)]
    paired = write(place.folder / "paired.jsonl", rows)
    says = f"{paired}:1: field 'text_pair': neighbours are single texts"
    place.refused(DataInvalid, says, neighbours=near(place, test=paired))


def as_dev_and_test(place: Place) -> dict[str, Any]:
    return {"test": place.data["dev"]}


def as_texts_and_test(place: Place) -> dict[str, Any]:
    return {"texts": [*place.data["texts"], place.data["test"]]}


def as_only_texts_and_dev(place: Place) -> dict[str, Any]:
    return {"texts": [place.data["dev"]]}


def a_copy_as_test(place: Place) -> dict[str, Any]:
    copy = place.folder / "copy.jsonl"
    copy.write_bytes(Path(place.data["dev"]).read_bytes())
    return {"test": str(copy)}


def as_fit_and_near(place: Place) -> dict[str, Any]:
    return {"neighbours": near(place, test=near(place)["fit"])}


def as_texts_and_near(place: Place) -> dict[str, Any]:
    return {"neighbours": near(place), "texts": [*place.data["texts"], near(place)["test"]]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (as_dev_and_test, "data/dev.jsonl is both dev and test"),
        (a_copy_as_test, "data/copy.jsonl is both dev and test"),
        (as_texts_and_test, "data/test.jsonl is both train and test"),
        (as_only_texts_and_dev, "data/dev.jsonl is both train and dev"),
        (as_fit_and_near, "data/fit.jsonl is both neighbours, fit and neighbours, test"),
        (as_texts_and_near, "data/near.jsonl is both train and neighbours, test"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_file_in_two_roles_is_refused(place: Place, change: Callable[[Place], dict], says: str) -> None:
    place.refused(RecipeInvalid, f"data: {says}; held-out rows need a file apart", **change(place))


def test_learning_from_the_labelled_neighbours_is_allowed(place: Place) -> None:
    neighbours = near(place)
    splits = place.splits(neighbours=neighbours, texts=[*place.data["texts"], neighbours["fit"]])
    assert len(splits.train) + len(splits.gate) == 212
