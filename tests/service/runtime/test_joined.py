"""Pairs whose texts are read apart: encoded, read, joined."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.load import load_bundle
from service.errors import GoldenMismatch, InvalidInput, ManifestInvalid, SettingsInvalid
from service.runtime.encode import EncodedPair
from service.runtime.joined import JoinedPair, as_second, joined_feeds, texts_of
from service.runtime.student import Student

PAIRS = [("is it good", "this film is great"), ("", "bad and slow and not usual"), ("my card", "")]


@pytest.fixture(params=["onnxruntime", "openvino"])
def split(request: Any, tmp_path: Path, build_bundle: Callable[..., Path]) -> Student:
    """A toy split ranker on each backend."""
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="the second backend is optional")
    path = build_bundle(tmp_path / "split", task="rank", pairs="separate", joined=True)
    return Student(load_bundle(path), backend=request.param, precision="fp32")


def test_a_pair_is_two_texts_with_their_own_special_tokens(split: Student) -> None:
    (pair,) = split.encoder.encode(PAIRS[:1])
    (first,), (second,) = texts_of([pair])
    assert isinstance(pair, EncodedPair)
    assert first.input_ids.tolist() == split.encoder.encode([PAIRS[0][0]])[0].input_ids.tolist()
    assert second.input_ids.tolist() == split.encoder.encode([PAIRS[0][1]])[0].input_ids.tolist()
    assert set(first.token_type_ids.tolist()) == {0}
    assert set(second.token_type_ids.tolist()) == {1}
    assert (pair.tokens, pair.kept) == (first.kept + second.kept,) * 2


def test_each_text_of_a_pair_may_be_as_long_as_the_student_takes(split: Student) -> None:
    long = "good film " * 40
    (pair,) = split.encoder.encode([(long, long)])
    assert pair.kept == 2 * split.manifest.max_tokens < pair.tokens
    with pytest.raises(InvalidInput):
        split.encoder.encode([("good", long)], truncate="error")


def test_single_texts_stand_beside_pairs(split: Student) -> None:
    single, pair = split.encoder.encode(["good", ("good", "bad")])
    assert not isinstance(single, EncodedPair)
    assert isinstance(pair, EncodedPair)


def test_a_score_does_not_depend_on_company_or_padding(split: Student) -> None:
    pairs = split.encoder.encode(PAIRS)
    together = split.all_exits(pairs)[0]
    alone = np.concatenate([split.all_exits([pair])[0] for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(split.all_exits(pairs, length=32)[0], alone, atol=1e-6)
    outcomes = split.run(pairs, split.policy())
    assert [float(one.raw) for one in outcomes] == together.tolist()


def test_states_are_int8_and_as_long_as_their_text(split: Student) -> None:
    assert split.apart is not None
    texts = split.encoder.encode(["good", "this film is great"])
    for text, state in zip(texts, split.apart.read([as_second(text) for text in texts]), strict=True):
        assert (state.dtype, state.shape) == (np.int8, (text.kept, 8))
        assert state.base is None, "the batch it came from is not kept"


def test_golden_samples_hold_and_a_changed_one_does_not(split: Student) -> None:
    split.check_golden()
    split.prove(token_budget=256)
    sample = split.bundle.golden.samples[0]
    sample.outputs["fp32"]["full"] = (99.0,)
    with pytest.raises(GoldenMismatch, match="sample 0"):
        split.check_golden()


def test_a_budget_below_one_text_is_refused(split: Student) -> None:
    with pytest.raises(SettingsInvalid, match="token budget 8"):
        split.prove(token_budget=8)


def test_texts_of_takes_nothing_but_pairs(split: Student) -> None:
    with pytest.raises(TypeError, match="takes pairs"):
        texts_of(split.encoder.encode(["good"]))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.booleans())
def test_joined_feeds_hold_every_state_and_nothing_else(lengths: list[tuple[int, int]], wider: bool) -> None:
    draw = np.random.default_rng(0)
    pairs = [JoinedPair(*(draw.integers(-127, 128, (n, 3), dtype=np.int8) for n in pair)) for pair in lengths]
    feeds = joined_feeds(pairs, "00.state", length=12 if wider else None)
    for side in ("first", "second"):
        states, mask = feeds[f"{side}:00.state"], feeds[f"{side}:attention_mask"]
        assert states.dtype == np.int8 and mask.dtype == np.int64
        for place, pair in enumerate(pairs):
            own = getattr(pair, side)
            assert mask[place].tolist() == [1] * len(own) + [0] * (states.shape[1] - len(own))
            np.testing.assert_array_equal(states[place, : len(own)], own)
            assert not states[place, len(own) :].any()
    assert feeds["attention_mask"].shape[1] == (12 if wider else max(second for _, second in lengths))


def test_states_of_whole_texts_have_no_tokens() -> None:
    pair = JoinedPair(np.ones(3, np.float32), np.zeros(3, np.float32))
    feeds = joined_feeds([pair, pair], "00.vector")
    assert feeds["first:00.vector"].shape == (2, 3)
    assert pair.kept == 1
    assert pair.fingerprint == pair.fingerprint != JoinedPair(pair.second, pair.second).fingerprint


def _no_requirement(document: dict[str, Any]) -> None:
    document["requires"] = []


def _joint(document: dict[str, Any]) -> None:
    document["pairs"] = "joint"


def _wrong_scope(document: dict[str, Any]) -> None:
    document["stages"][1]["scope"] = "item"


def _wrong_lower_scope(document: dict[str, Any]) -> None:
    document["stages"][0]["scope"] = "pair"


def _reads_ids(document: dict[str, Any]) -> None:
    document["stages"][1]["inputs"]["first_mask"] = "attention_mask"


def _reads_nothing_known(document: dict[str, Any]) -> None:
    document["stages"][1]["inputs"]["first"] = "first:00.other"


def _exit_before(document: dict[str, Any]) -> None:
    document["stages"][0]["outputs"]["score"] = {"dtype": "float32", "dims": ["B"]}
    document["exits"].insert(0, {"id": "early", "stage": "00", "output": "score", "depth": 0.5})


def _sided_first(document: dict[str, Any]) -> None:
    document["stages"][0]["inputs"]["input_ids"] = "first:input_ids"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_requirement, "requires: must name 'joined'"),
        (_joint, "pairs: must be 'separate'"),
        (_wrong_scope, "'01' has scope 'item', and joins two texts"),
        (_wrong_lower_scope, "'00' has scope 'pair', and reads one text alone"),
        (_reads_ids, "'01' joins two texts, and reads 'attention_mask'"),
        (_reads_nothing_known, "reads 'first:00.other', which nothing before writes"),
        (_exit_before, "exits: one lies before two texts are joined"),
        (_sided_first, "'00' joins texts that no stage before it has read"),
    ],
)
def test_a_manifest_that_joins_wrongly_is_refused(
    change: Any, message: str, tmp_path: Path, build_bundle: Callable[..., Path]
) -> None:
    path = build_bundle(tmp_path / "b", task="rank", pairs="separate", joined=True, change=change)
    with pytest.raises(ManifestInvalid, match=message):
        load_bundle(path)


def test_a_requirement_without_its_stages_is_refused(tmp_path: Path, build_bundle: Callable[..., Path]) -> None:
    path = build_bundle(tmp_path / "b", change=lambda document: document.update(requires=["joined"]))
    with pytest.raises(ManifestInvalid, match="no stage joins two texts"):
        load_bundle(path)
