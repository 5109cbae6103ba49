"""Rankings cut into splits: where queries go, what is joined, what is kept from training, what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from models.data.cuts import place_of
from models.data.rank_lists import training_lists
from models.data.rank_sets import Ranking
from models.data.rankings import TrainQueries, prepare_rankings, query_key
from models.errors import DataInvalid, DataLeak, RecipeInvalid
from models.recipe.rank import Negatives, RankRecipe
from models.recipe.read import recipe_of


def listed(path: Path, rows: Sequence[tuple[str, Sequence[tuple[str, Any]]]]) -> str:
    documents = [{"query": q, "passages": [{"text": t, "label": g} for t, g in passages]} for q, passages in rows]
    path.write_text("\n".join(json.dumps(row) for row in documents) + "\n")
    return str(path)


def plain(count: int, *, word: str = "question", relevant: bool = True) -> list[tuple[str, list[tuple[str, Any]]]]:
    return [
        (f"{word} {at}", [(f"answer {word} {at}", int(relevant)), (f"other {word} {at}", 0)]) for at in range(count)
    ]


def corpus(folder: Path, *, shared: bool = False) -> dict[str, Any]:
    """40 training queries about d0..d9, 5 test queries about d20..d24 (or d0..d4); d30 is about nothing."""
    folder.mkdir(exist_ok=True)
    documents = [{"id": f"d{at}", "title": f"name{at}", "text": f"words of {at}"} for at in range(31)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    for split, count, about in (("train", 40, 0), ("test", 5, 0 if shared else 20)):
        rows = [{"id": f"{split}{at}", "text": f"{split} query v{at} name{about + at % 10}"} for at in range(count)]
        (folder / f"q_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        qrels = [f"{split}{at}\td{about + at % 10}\t1" for at in range(count)]
        (folder / f"r_{split}.tsv").write_text("\n".join(qrels))
    names = {
        split: {"queries": str(folder / f"q_{split}.jsonl"), "qrels": str(folder / f"r_{split}.tsv")}
        for split in ("train", "test")
    }
    return {
        "name": "corpus",
        "corpus": str(folder / "corpus.jsonl"),
        "train": names["train"],
        "tests": {"corpus": names["test"]},
        "depth": 5,
    }


def recipe(*sets: dict[str, Any], **data: Any) -> RankRecipe:
    document = {
        "schema": 1,
        "name": "toy",
        "task": "rank",
        "data": {"sets": list(sets), "dev": {"cut": 0.2}, "gate": {"cut": 0.2}, **data},
        "distil": {"objectives": [{"listwise_kl": {}}]},
    }
    found = recipe_of(document, where="R")
    assert isinstance(found, RankRecipe)
    return found


def lists(
    folder: Path, train: Sequence[Any] | None = None, test: Sequence[Any] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "name": "lists",
        "train": listed(folder / "train.jsonl", plain(60) if train is None else train),
        "tests": {"lists": listed(folder / "test.jsonl", plain(5, word="test") if test is None else test)},
        **more,
    }


def test_a_query_goes_where_its_words_say(tmp_path: Path) -> None:
    splits = prepare_rankings(recipe(lists(tmp_path)))
    for ranking in splits.gate:
        assert place_of(query_key(ranking)) < 0.2
    for ranking in splits.dev:
        assert 0.5 <= place_of(query_key(ranking)) < 0.7
    (train,) = splits.train
    assert len(splits.gate) + len(splits.dev) + len(splits.calibration) + len(train.answered) == 60
    assert {f"answer {r.query}" for r in train.answered} <= set(train.pool)
    assert not {f"answer {r.query}" for r in splits.gate} & set(train.pool)


def test_more_of_one_set_moves_no_query_of_another(tmp_path: Path) -> None:
    alone = prepare_rankings(recipe(lists(tmp_path)))
    both = prepare_rankings(recipe(lists(tmp_path), corpus(tmp_path / "c")))
    assert set(alone.gate) <= set(both.gate)
    assert set(both.tests) == {"lists", "corpus"}
    assert [each.name for each in both.train] == ["lists", "corpus"]


def test_a_set_with_a_dev_of_its_own_gives_none_of_its_train(tmp_path: Path) -> None:
    own = listed(tmp_path / "dev.jsonl", plain(4, word="dev"))
    splits = prepare_rankings(recipe(lists(tmp_path, dev=own)))
    assert [r.query for r in splits.dev] == [f"dev {at}" for at in range(4)]


def test_what_held_out_queries_are_about_is_kept_from_training(tmp_path: Path) -> None:
    splits = prepare_rankings(recipe(corpus(tmp_path)))
    (train,) = splits.train
    assert f"words of {20}" not in train.pool
    assert "words of 30" in train.pool
    assert all("words of 20" not in r.passages for r in train.answered)
    assert "corpus: 5 of 31 documents are relevant to held-out queries only" in splits.notes[0]
    (test,) = splits.tests.values()
    assert all(len(r.passages) == 5 and r.grades[0] == 1 for r in test), "BM25 made the candidates"


def test_what_both_are_about_may_be_learned_from(tmp_path: Path) -> None:
    (train,) = prepare_rankings(recipe(corpus(tmp_path, shared=True))).train
    assert len(train.pool) == 31


def test_a_title_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    splits = prepare_rankings(recipe({**corpus(tmp_path), "title": "join"}))
    assert splits.answered[0].passages[0].startswith("name")


def test_given_candidates_are_kept_in_order_and_misses_counted(tmp_path: Path) -> None:
    settings = corpus(tmp_path)
    (tmp_path / "c.tsv").write_text("test0\td3\ntest0\td20\ntest1\td3\ntest1\td4\n")
    settings["tests"]["corpus"]["candidates"] = str(tmp_path / "c.tsv")
    splits = prepare_rankings(recipe(settings))
    first, second, third, *_ = splits.tests["corpus"]
    assert (first.passages, first.grades, first.missed) == (("words of 3", "words of 20"), (0.0, 1.0), ())
    assert [each.text for each in second.missed] == ["words of 21"]
    assert (third.passages, third.answered) == ((), True)
    assert "test corpus: 3 of 5 queries have no candidates" in splits.notes


def test_training_queries_of_the_same_words_are_one(tmp_path: Path) -> None:
    again = [("Question 3?", [("a second answer", 1), ("answer question 3", 0)])]
    splits = prepare_rankings(recipe(lists(tmp_path, train=[*plain(60), *again]), gate={"cut": 0.4}))
    found = [r for each in (splits.train[0].answered, splits.gate, splits.dev) for r in each if "3" in r.query.split()]
    assert [(r.passages, r.grades) for r in found] == [
        (("answer question 3", "other question 3", "a second answer"), (1.0, 0.0, 1.0))
    ]
    assert "lists: 1 training queries repeat another, or a held-out one; joined or left out" in splits.notes


def test_queries_without_an_answer_are_apart_and_counted(tmp_path: Path) -> None:
    bare = plain(30, word="bare", relevant=False)
    splits = prepare_rankings(
        recipe(
            lists(tmp_path, train=[*plain(60), *bare], test=[*plain(3, word="t"), (bare[0][0], [("x", 0)])]),
            allowed_overlap=0.5,
        )
    )
    (train,) = splits.train
    assert train.unanswered and all(not r.answered for r in train.unanswered)
    assert any("training queries have no relevant passage" in note for note in splits.notes)
    assert any(note.startswith("test lists: 1 of 4 queries have no relevant passage") for note in splits.notes)


def test_a_held_out_query_in_train_is_a_leak_or_taken_out(tmp_path: Path) -> None:
    test = [*plain(4, word="test"), ("QUESTION 7.", [("x", 1), ("y", 0)])]
    with pytest.raises(DataLeak, match=r"test lists: 1 of its 5 queries \(20.00%\) occur in train, more than .* 1.00%"):
        prepare_rankings(recipe(lists(tmp_path, test=test)))
    splits = prepare_rankings(recipe(lists(tmp_path, test=test), allowed_overlap=0.2))
    everywhere = [r.query for r in (*splits.answered, *splits.dev, *splits.gate, *splits.calibration)]
    assert "question 7" not in everywhere
    assert "test lists: 1 of its 5 queries occur in train; taken out of train" in splits.notes


def test_digests_tell_splits_apart_whatever_their_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = prepare_rankings(recipe(lists(tmp_path / "a")))
    second = prepare_rankings(recipe(lists(tmp_path / "b", train=plain(60)[::-1])))
    third = prepare_rankings(recipe(lists(tmp_path / "b", train=plain(61))))
    assert first.digests == second.digests
    assert first.digests["train"] != third.digests["train"] or first.digests["gate"] != third.digests["gate"]
    assert not any(
        str(tmp_path) in json.dumps([s.model_dump() for s in first.sources] + list(first.notes)) for _ in "1"
    )


@pytest.mark.parametrize(
    ("passages", "said"),
    [
        ([("x", None), ("y", 1)], "train.jsonl:1: field 'passages[0]': 'label' is missing"),
        ([("x", 0), ("y", -1)], "train.jsonl:1: field 'passages[1]': 'label' must be in 0 to 100, is -1"),
        ([("x", 0), ("y", 1000)], "train.jsonl:1: field 'passages[1]': 'label' must be in 0 to 100, is 1000"),
        ([("x", 0), (" ", 1)], "train.jsonl:1: field 'passages[1]': is empty"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, passages: list[tuple[str, Any]], said: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        prepare_rankings(recipe(lists(tmp_path, train=[("q", passages), *plain(60)])))
    assert said in str(caught.value)


def test_held_out_lists_must_have_grades(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"test.jsonl:1: field 'passages\[0\]': 'label' is missing"):
        prepare_rankings(recipe(lists(tmp_path, test=[("q", [("x", None)])])))


def test_training_lists_without_any_grade_are_for_the_teacher_to_score(tmp_path: Path) -> None:
    bare = [(f"bare {at}", [("x", None), ("y", None)]) for at in range(20)]
    (train,) = prepare_rankings(recipe(lists(tmp_path, train=[*plain(60), *bare]))).train
    assert train.unanswered


def test_too_few_of_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="training queries with a relevant passage after the cuts, too few"):
        prepare_rankings(recipe(lists(tmp_path, train=plain(20, relevant=False))))
    with pytest.raises(DataInvalid, match="passages to train on after the cuts, too few to rank"):
        prepare_rankings(recipe(lists(tmp_path, train=[(f"q {at}", [("the only one", 1)]) for at in range(20)])))
    with pytest.raises(DataInvalid, match=r"data.gate: holds no query with a relevant passage"):
        prepare_rankings(recipe(lists(tmp_path), gate={"cut": 1e-6}))


def test_one_file_has_one_role(tmp_path: Path) -> None:
    same = lists(tmp_path, test=plain(60))
    with pytest.raises(RecipeInvalid, match="each role needs its own queries"):
        prepare_rankings(recipe(same))


RANKING = Ranking(
    "q",
    passages=("good", "bad 1", "bad 2", "better", "bad 3", "bad 4"),
    grades=(1.0, 0.0, 0.0, 2.0, 0.0, 0.0),
)
POOL = tuple(f"pool {at}" for at in range(20))


def made(*, answered: Sequence[Ranking] = (RANKING,), unanswered: Sequence[Ranking] = (), **more: Any) -> list[Ranking]:
    settings: dict[str, Any] = {"positives": 2, "unanswered": True, "seed": 0, **more}
    negatives = settings.pop("negatives", Negatives(hard=2, among=3, random=2))
    return training_lists([TrainQueries("s", tuple(answered), tuple(unanswered), POOL)], negatives, **settings)


def test_a_list_is_its_best_passages_then_hard_then_random_ones() -> None:
    (found,) = made()
    assert found.passages[:2] == ("better", "good")
    assert found.grades == (2.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert set(found.passages[2:4]) < {"bad 1", "bad 2", "bad 3"}, "the first three that are not relevant"
    assert set(found.passages[4:]) < set(POOL)
    assert (found,) == tuple(made())
    assert made(seed=1) != [found]


def test_a_list_of_one_positive_takes_the_best() -> None:
    assert made(positives=1)[0].passages[0] == "better"


def test_lists_without_an_answer_are_made_where_they_are_asked_for() -> None:
    bare = Ranking("u", ("x", "y"), (0.0, 0.0))
    assert [each.query for each in made(unanswered=(bare,))] == ["q", "u"]
    assert (
        len(
            training_lists(
                [TrainQueries("s", (RANKING,), (bare,), POOL)], Negatives(), positives=1, unanswered=False, seed=0
            )
        )
        == 1
    )


def test_a_list_that_would_be_of_one_passage_is_left_out() -> None:
    lonely = Ranking("q", ("good",), (1.0,))
    assert made(answered=(lonely,), negatives=Negatives(hard=3, random=0)) == []


def test_another_query_changes_no_list() -> None:
    other = Ranking("r", ("a", "b"), (1.0, 0.0))
    assert made()[0] in made(answered=(other, RANKING))
