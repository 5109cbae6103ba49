"""Dark examples: what is made of a list, what never is, and that it hangs on the list and the seed alone."""

import random
from typing import Any

import pytest

from models.data.dark_examples import DarkMaker, taken_by
from models.data.rank_sets import Ranking
from models.data.rankings import RankSplits, TrainQueries
from models.data.rows import LabelledPassage, Row, group_key, words
from models.recipe.dark_examples import DarkExamples

WORDS = [f"w{at}" for at in range(60)]
GOOD = "The refund, for my card, was sent on Monday morning by the bank"
POOR = "a film about late trains that nobody saw again in any good year"
RANKING = Ranking("where is my refund", (GOOD, POOR, "far off"), (1.0, 0.0, 0.0), file="train.jsonl", line=3)


def maker(*, hard: int = 1, seed: int = 0, taken: frozenset[str] = frozenset(), **settings: Any) -> DarkMaker:
    return DarkMaker(DarkExamples(**settings), hard, seed, taken)


def made(ranking: Ranking, **settings: Any) -> tuple[str, ...]:
    found = maker(**settings).darkened(ranking)
    return found.passages[len(ranking.passages) :]


def test_examples_stand_at_the_end_of_their_list_without_a_grade() -> None:
    found = maker(of_list=2).darkened(RANKING)
    assert (found.dark, len(found.passages)) == (2, 5)
    assert found.passages[:3] == RANKING.passages
    assert found.grades == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert (found.query, found.file, found.line) == (RANKING.query, "train.jsonl", 3)


def test_words_are_left_out_in_their_order() -> None:
    examples = made(RANKING, mix=0.0, of_list=8)
    assert len(examples) == 8
    for text in examples:
        left = iter(GOOD.split())
        assert all(word in left for word in text.split()), "a subsequence of the passage"


def test_words_of_the_query_go_first() -> None:
    (text,) = made(RANKING, of_list=1, mix=0.0, mask=0.0, mask_shared=1.0)
    assert text == "The for card, was sent on Monday morning by the bank", "without `refund,` and `my`"


def test_a_mix_is_a_run_of_each_about_as_long_as_the_passage() -> None:
    examples = made(RANKING, mix=1.0, of_list=8)
    assert len(examples) == 8
    for text in examples:
        assert any(f"{a} {b}" == text or f"{b} {a}" == text for a in runs(GOOD) for b in runs(POOR))
        assert abs(len(text.split()) - len(GOOD.split())) <= 1


def runs(text: str) -> list[str]:
    parts = text.split()
    return [" ".join(parts[begin:end]) for begin in range(len(parts)) for end in range(begin + 1, len(parts) + 1)]


def test_only_hard_negatives_are_mixed_where_there_are_any() -> None:
    mixed = made(RANKING, mix=1.0, of_list=8, hard=1)
    assert len(mixed) == 8
    assert not any({"far", "off"} & set(text.split()) for text in mixed)
    easy = made(Ranking(RANKING.query, (GOOD, "far off"), (1.0, 0.0)), mix=1.0, hard=0)
    assert len(easy) == 2
    assert all({"far", "off"} & set(text.split()) for text in easy)


def test_a_list_without_an_answer_gets_none() -> None:
    bare = Ranking("q", (POOR, "far off"), (0.0, 0.0))
    assert maker().darkened(bare) is bare


def test_without_negatives_nothing_is_mixed() -> None:
    examples = made(Ranking("q", (GOOD, "another good one"), (2.0, 1.0)), mix=1.0, of_list=4)
    assert examples
    for text in examples:
        assert set(text.split()) < set(GOOD.split()) or set(text.split()) < {"another", "good", "one"}


def test_what_is_taken_does_not_come_out() -> None:
    (text,) = made(RANKING, of_list=1, mix=0.0, mask=0.0, mask_shared=1.0)
    assert made(RANKING, of_list=1, mix=0.0, mask=0.0, mask_shared=1.0, taken=frozenset({group_key(Row(text))})) == ()


@pytest.mark.parametrize("passage", ["refund", "?!", "where is my refund"])
def test_a_passage_of_which_nothing_else_can_be_made_has_no_example(passage: str) -> None:
    assert made(Ranking("where is my refund", (passage,), (1.0,)), mask=0.0, mask_shared=1.0) == ()


def lists(count: int) -> list[Ranking]:
    """Lists of every size, words drawn from few, so that examples and passages often have the same ones."""
    chance = random.Random(5)

    def text() -> str:
        return " ".join(chance.choices(WORDS[: chance.choice((3, 60))], k=chance.randint(1, 12)))

    found = []
    for _ in range(count):
        passages = tuple(dict.fromkeys(text() for _ in range(chance.randint(1, 6))))
        grades = (float(chance.random() < 0.9), *(float(chance.random() < 0.2) for _ in passages[1:]))
        found.append(Ranking(text(), passages, grades))
    return found


@pytest.mark.parametrize("settings", [{}, {"mix": 0.0, "mask": 0.9}, {"mix": 1.0, "of_list": 5}, {"mask": 0.05}])
def test_of_any_list_an_example_is_something_else_and_the_same_each_time(settings: dict[str, Any]) -> None:
    several = lists(200)
    taken = frozenset(group_key(Row(text)) for each in several for text in each.passages)
    one = maker(seed=3, taken=taken, **settings)
    found = [one.darkened(each) for each in several]
    for before, after in zip(several, found, strict=True):
        examples = after.passages[len(before.passages) :]
        assert after.dark == len(examples) <= DarkExamples(**settings).of_list
        assert len({words(text) for text in examples}) == len(examples)
        assert all(text.strip() and group_key(Row(text)) not in taken for text in examples)
        assert set(" ".join(examples).split()) <= set(" ".join(before.passages).split())
    assert sum(each.dark for each in found) > 100
    assert [one.darkened(each) for each in reversed(several)][::-1] == found
    assert [maker(seed=4, taken=taken, **settings).darkened(each) for each in several] != found


def test_every_passage_of_the_splits_is_taken() -> None:
    def asked(name: str) -> Ranking:
        return Ranking(f"{name}?", (f"{name} listed",), (0.0,), (LabelledPassage(f"{name} missed", 1.0),))

    splits = RankSplits(
        train=(TrainQueries("s", (asked("answered"),), (asked("unanswered"),), ("pool",)),),
        dev=(asked("dev"),),
        calibration=(asked("calibration"),),
        gate=(asked("gate"),),
        tests={"t": (asked("test"),)},
        notes=(),
        digests={},
        sources=(),
    )
    names = ("answered", "unanswered", "dev", "calibration", "gate", "test")
    wanted = {"pool", *(f"{name} {kind}" for name in names for kind in ("listed", "missed"))}
    assert taken_by(splits) == {group_key(Row(text)) for text in wanted}
