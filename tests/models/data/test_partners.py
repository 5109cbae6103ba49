"""New pairs for students of pairs: near by words, never known ones, held-out ones or a text with itself."""

from hypothesis import given
from hypothesis import strategies as st

from models.data.partners import partnered
from models.data.rows import Row, group_key, words

PAIRS = [
    ("how do i block my card", "my card must be blocked"),
    ("how do i block my account", "the account is closed"),
    ("where is the nearest branch", "which branch is near"),
    ("quite another thing", "nothing alike"),
]
WORDS = ("card", "bank", "block", "lost", "my", "is", "where")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


def test_a_text_meets_what_is_nearest_and_not_its_own_partner():
    made = partnered(PAIRS, (), 1, forbidden=frozenset())
    assert ("how do i block my card", "how do i block my account") in made
    assert ("where is the nearest branch", "which branch is near") not in made
    # of what shares no word with any other text there is nothing near
    assert not any("quite another thing" in pair for pair in made)


def test_texts_of_a_pool_get_partners_too():
    made = partnered(PAIRS, ["block the card for me"], 2, forbidden=frozenset())
    assert {second for first, second in made if first == "block the card for me"} <= {each for p in PAIRS for each in p}
    assert any(first == "block the card for me" for first, _ in made)


def test_held_out_pairs_do_not_come_out_whichever_text_stands_first():
    wanted = ("how do i block my card", "how do i block my account")
    for first, second in (wanted, wanted[::-1]):
        forbidden = frozenset({group_key(Row(f"{first}!", text_pair=second))})
        made = partnered(PAIRS, (), 1, forbidden=forbidden)
        assert wanted not in made
        assert wanted[::-1] not in made
        assert made


def test_none_are_made_where_none_are_asked_for():
    assert partnered(PAIRS, ("a pool",), 0, forbidden=frozenset()) == []


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), st.integers(1, 4))
def test_each_new_pair_is_new_and_made_once_and_few_of_a_text(pairs: list[tuple[str, str]], count: int):
    made = partnered(pairs, (), count, forbidden=frozenset())
    keys = [frozenset((words(first), words(second))) for first, second in made]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {frozenset((words(first), words(second))) for first, second in pairs}
    assert all(len(key) == 2 for key in keys)
    texts = {text for pair in pairs for text in pair}
    firsts = [first for first, _ in made]
    assert {text for pair in made for text in pair} <= texts
    assert all(firsts.count(first) <= count for first in set(firsts))
    assert made == partnered(pairs, (), count, forbidden=frozenset())
