"""Parts of texts: found wherever they stand, and only as whole words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.parts import PartIndex, whole_texts

SHORT = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a very good film .", {"good", "good film", "a very good film"}),
        ("Good-film", {"good", "good film"}),
        ("goodness", set()),
        ("film good", {"good"}),
        ("", set()),
    ],
)
def test_parts_are_runs_of_whole_words(text: str, found: set[str]) -> None:
    assert PartIndex(["good", "Good film!", "a very good film", "film a"]).parts_of(text) == found


def test_a_text_longer_than_all_others_is_searched_to_its_end() -> None:
    assert PartIndex(["x y", "z"]).parts_of("a " * 500 + "x y z") == {"x y", "z"}


@given(SHORT)
def test_parts_agree_with_a_plain_search(texts: list[str]) -> None:
    index = PartIndex(texts)
    for text in texts:
        assert index.parts_of(text) == {part for part in texts if f" {part} " in f" {text} "}


@given(SHORT)
def test_whole_texts_agree_with_a_plain_search(texts: list[str]) -> None:
    plain = {t for t in texts if not any(t != other and f" {t} " in f" {other} " for other in texts)}
    assert whole_texts(texts) == plain
