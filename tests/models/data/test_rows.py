"""The keys of rows: what counts as the same row, and as the same words."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import models.data.parts
import models.data.rows
from models.data.rows import Row, group_key, normalised, row_key, words

TEXTS = st.text(max_size=30)


@pytest.mark.parametrize("module", [models.data.rows, models.data.parts])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [("Hello  there", " hello\tthere\n"), ("ﬁne", "FINE"), ("Straße", "STRASSE"), ("café", "cafe\u0301"), ("Å", "Å")],
)
def test_case_space_and_unicode_forms_do_not_make_another_row(one: str, other: str) -> None:
    assert row_key(Row(one)) == row_key(Row(other))


@pytest.mark.parametrize(("one", "other"), [("top up", "top-up"), ("cool ?", "cool"), ("so «good»!", "so good")])
def test_punctuation_makes_another_row_of_the_same_group(one: str, other: str) -> None:
    assert row_key(Row(one)) != row_key(Row(other))
    assert group_key(Row(one)) == group_key(Row(other))


@pytest.mark.parametrize(("one", "other"), [("कि", "की"), ("a b", "ab"), ("?!", "!?"), ("v 1", "v 2")])
def test_marks_digits_and_word_boundaries_make_another_group(one: str, other: str) -> None:
    assert group_key(Row(one)) != group_key(Row(other))


def test_the_label_and_the_place_are_no_part_of_a_key() -> None:
    assert row_key(Row("a", "x", file="f", line=1)) == row_key(Row("a", "y", file="g", line=2))


def test_pairs_are_told_apart() -> None:
    rows = [Row("a b"), Row("a", text_pair="b"), Row("b", text_pair="a"), Row("a\nb"), Row("a b", text_pair="a b")]
    assert len({row_key(row) for row in rows}) == 4  # "a b" and "a\nb" are one text
    assert len({group_key(row) for row in rows}) == 4


@given(TEXTS)
def test_both_forms_are_stable_and_collapse_space(text: str) -> None:
    for form in (normalised, words):
        once = form(text)
        assert form(once) == once
        assert once == " ".join(once.split())


@given(TEXTS)
def test_a_text_that_says_something_has_words(text: str) -> None:
    assert bool(words(text)) == bool(text.strip() and normalised(text))


@given(TEXTS, st.sampled_from([" ", "\t", "\u00a0", ""]))
def test_a_text_in_other_case_and_space_is_of_its_group(text: str, space: str) -> None:
    other = f"{space}{text.casefold()}{space}"
    assert row_key(Row(other)) == row_key(Row(text))
    assert group_key(Row(other)) == group_key(Row(text))
