"""Augmentation: each of its moves, and its promises (never empty, forbidden or the text itself; repeatable)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.augment import Augmenter
from models.data.rows import Row, group_key
from models.recipe.distil import Augment

NOTHING = Augment(drop=0, replace=0, window=0, mix=0)
EVERYTHING = Augment(drop=0.3, replace=0.3, window=0.5, mix=0.3)
NEIGHBOURS = {"card": ("ticket", "pass"), "where": ("when",), "do": ("does",), "(it)": ("them",)}
TEXT = "where is my card ?"


def only(**moves: float) -> Augment:
    return NOTHING.model_copy(update=moves)


def is_run(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


def test_without_any_move_there_is_no_variant() -> None:
    assert Augmenter(NEIGHBOURS, NOTHING, 0).variants(TEXT, 9) == []


def test_dropping_leaves_some_words_in_order() -> None:
    variants = Augmenter(None, only(drop=0.5), 0).variants(TEXT, 9)
    assert len(variants) == 9
    for variant in variants:
        rest = iter(TEXT.split())
        assert all(word in rest for word in variant.split())


def test_dropping_everything_leaves_one_word() -> None:
    variants = Augmenter(None, only(drop=1), 0).variants(TEXT, 20)
    assert set(variants) == set(TEXT.split())


def test_replacing_takes_neighbours_only() -> None:
    variants = Augmenter(NEIGHBOURS, only(replace=1), 0).variants(TEXT, 9)
    assert set(variants) == {"when is my ticket ?", "when is my pass ?"}


@pytest.mark.parametrize(
    ("text", "variant"), [("Where?", "when?"), ('"where"', '"when"'), ("DO", "does"), ("(it)", "them")]
)
def test_replacing_keeps_the_punctuation_around_a_word(text: str, variant: str) -> None:
    assert Augmenter(NEIGHBOURS, only(replace=1), 0).variants(text, 1) == [variant]


def test_punctuation_alone_is_never_replaced() -> None:
    assert Augmenter(NEIGHBOURS, only(replace=1), 0).variants("?! ...", 3) == []


def test_windows_are_runs_of_the_text() -> None:
    variants = Augmenter(None, only(window=1), 0).variants(TEXT, 14)
    assert len(variants) >= 10  # of the 14 proper runs of five words
    assert all(is_run(variant.split(), TEXT.split()) for variant in variants)


def test_mixing_joins_a_window_of_the_text_and_one_of_another() -> None:
    pool = ["red green blue", "one two three"]
    for variant in Augmenter(None, only(mix=1), 0).variants(TEXT, 9, pool=pool):
        own = [word for word in variant.split() if word in TEXT.split()]
        other = variant.split()[len(own) :]
        assert is_run(own, TEXT.split())
        assert any(is_run(other, text.split()) for text in pool)
        assert own
        assert other


def test_without_a_pool_nothing_is_mixed() -> None:
    assert Augmenter(None, only(mix=1), 0).variants(TEXT, 9) == []


def test_forbidden_groups_never_come_out() -> None:
    augmenter = Augmenter(None, only(window=1), 0)
    assert "my card" in augmenter.variants(TEXT, 14)
    forbidden = frozenset(group_key(Row(text)) for text in ("My card!", "is"))
    variants = Augmenter(None, only(window=1), 0, forbidden=forbidden).variants(TEXT, 14)
    assert not {"my card", "my card ?", "is"} & set(variants)
    assert "my" in variants


def test_what_is_made_of_a_text_does_not_depend_on_earlier_calls() -> None:
    one, other = Augmenter(NEIGHBOURS, EVERYTHING, 3), Augmenter(NEIGHBOURS, EVERYTHING, 3)
    other.variants("something else first", 5)
    assert one.variants(TEXT, 9) == other.variants(TEXT, 9)


def test_the_seed_changes_what_is_made() -> None:
    made = {tuple(Augmenter(NEIGHBOURS, EVERYTHING, seed).variants(TEXT, 9)) for seed in range(4)}
    assert len(made) == 4


def test_all_texts_together_give_each_variant_once_and_no_text() -> None:
    texts = [TEXT, "where is my", "is my card", "is"]
    made = Augmenter(None, only(window=1), 0).augment_all(texts, 14)
    assert len(made) == len(set(made))
    assert not set(made) & set(texts)
    assert "my" in made


def test_all_texts_together_are_the_pool() -> None:
    made = Augmenter(None, only(mix=1), 0).augment_all(["a b", "c d"], 20)
    assert any(set(text.split()) & {"a", "b"} and set(text.split()) & {"c", "d"} for text in made)


def test_no_rows_and_no_texts_give_nothing() -> None:
    augmenter = Augmenter(NEIGHBOURS, EVERYTHING, 0)
    assert augmenter.augment_all([TEXT], 0) == []
    assert augmenter.augment_all([], 9) == []
    assert augmenter.variants("", 9) == []


@given(st.text(alphabet="ab ?card where", max_size=40), st.integers(0, 12), st.integers(0, 5))
def test_variants_keep_their_promises(text: str, n: int, seed: int) -> None:
    barred = "a b"
    forbidden = frozenset({group_key(Row(barred))})
    variants = Augmenter(NEIGHBOURS, EVERYTHING, seed, forbidden=forbidden).variants(text, n, pool=[text, "b a"])
    assert len(variants) <= n
    assert len(set(variants)) == len(variants)
    for variant in variants:
        assert variant.strip()
        assert variant != text
        assert group_key(Row(variant)) not in forbidden


PAIR = ("where is my card ?", "my card is late again")


def group(pair: tuple[str, str]) -> str:
    return group_key(Row(pair[0], text_pair=pair[1]))


def test_a_pair_comes_the_other_way_round_first_and_then_varied() -> None:
    found = Augmenter(None, only(drop=0.4), 0).augment_pairs([PAIR], 3)
    assert found[0] == (PAIR[1], PAIR[0])
    assert len(found) == 3
    for first, second in found[1:]:
        assert set(first.split()) <= set(PAIR[0].split())
        assert set(second.split()) <= set(PAIR[1].split())


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (1, 1), (4, 4)])
def test_a_pair_has_at_most_so_many_variants(rows: int, count: int) -> None:
    assert len(Augmenter(None, only(drop=0.4), 0).augment_pairs([PAIR], rows)) == count


def test_pairs_that_are_held_out_never_come_out_in_either_order() -> None:
    turned, settings = (PAIR[1], PAIR[0]), only(drop=0.4)
    free = Augmenter(None, settings, 0).augment_pairs([PAIR], 4)
    forbidden = frozenset({group(turned), group(free[2])})
    found = Augmenter(None, settings, 0, forbidden=forbidden).augment_pairs([PAIR], 4)
    assert found == [free[1], free[3]]


def test_no_variant_is_a_pair_that_is_there_already() -> None:
    same = ("my card", "my card")
    assert Augmenter(None, NOTHING, 0).augment_pairs([PAIR, (PAIR[1], PAIR[0]), same], 3) == []


def test_a_text_that_has_no_variant_stays_beside_those_of_the_other() -> None:
    found = Augmenter(None, only(drop=0.4), 0).augment_pairs([("?", PAIR[1])], 3)
    assert found[0] == (PAIR[1], "?")
    assert [first for first, _ in found[1:]] == ["?"]
    assert found == Augmenter(None, only(drop=0.4), 0).augment_pairs([("?", PAIR[1])], 3)


@given(
    pairs=st.lists(st.tuples(st.text("ab .", max_size=12), st.text("ab .", max_size=12)), max_size=5),
    rows=st.integers(0, 4),
)
def test_variants_of_pairs_are_new_and_each_once(pairs: list[tuple[str, str]], rows: int) -> None:
    found = Augmenter(NEIGHBOURS, EVERYTHING, 0).augment_pairs(pairs, rows)
    assert len(found) == len(set(found)) <= rows * len(pairs)
    assert not set(found) & set(pairs)
