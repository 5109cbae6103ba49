"""The permanent rule: which place a group of rows has, and which split is at a place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.cuts import place_of, split_at
from models.data.rows import Row, group_key
from models.recipe.classify import Data
from models.recipe.parts import Cut


def test_the_rule_is_the_published_one() -> None:
    """These numbers may never change: rows held out once would be trained on."""
    assert place_of(group_key(Row("Where is my card?"))) == pytest.approx(0.06010264, abs=1e-8)
    assert place_of(group_key(Row("where is   MY card"))) == place_of(group_key(Row("Where is my card?")))
    assert place_of(group_key(Row("a", text_pair="b"))) == pytest.approx(0.94130341, abs=1e-8)


def data_of(gate: float, calibration: float, dev: float | None) -> Data:
    cut = "dev.jsonl" if dev is None else Cut(cut=dev)
    return Data(train="t", test="t", dev=cut, calibration=Cut(cut=calibration), gate=Cut(cut=gate))


@pytest.mark.parametrize(
    ("place", "split"),
    [
        (0.0, "gate"),
        (0.0999, "gate"),
        (0.1, "train"),
        (0.4999, "train"),
        (0.5, "dev"),
        (0.6499, "dev"),
        (0.65, "train"),
        (0.7999, "train"),
        (0.8, "calibration"),
        (1 - 2**-53, "calibration"),
    ],
)
def test_each_interval_starts_at_its_own_end(place: float, split: str) -> None:
    assert split_at(place, data_of(gate=0.1, calibration=0.2, dev=0.15)) == split


def test_where_dev_is_a_file_its_interval_is_train() -> None:
    assert split_at(0.5, data_of(gate=0.1, calibration=0.2, dev=None)) == "train"


@given(st.text())
def test_places_are_in_the_unit_interval(text: str) -> None:
    assert 0 <= place_of(text) < 1


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 0.16), st.floats(0.01, 0.16))
def test_a_larger_share_moves_rows_out_of_train_only(place: float, share: float, more: float) -> None:
    before = split_at(place, data_of(gate=share, calibration=share, dev=share))
    for larger in ({"gate": share + more}, {"calibration": share + more}, {"dev": share + more}):
        after = split_at(place, data_of(**{"gate": share, "calibration": share, "dev": share, **larger}))
        assert before in (after, "train")
