"""Pairs whose texts are read apart: encoded, read, joined."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.load import load_bundle
from service.bundle.manifest import Exit, FileEntry, Manifest, Precision, Provenance, Stage, Tensor
from service.errors import GoldenMismatch, InvalidInput, ManifestInvalid, SettingsInvalid
from service.runtime.encode import EncodedPair
from service.runtime.heads import ExitPolicy
from service.runtime.joined import JoinedPair, as_second, joined_feeds, joined_length, texts_of
from service.runtime.pipeline import Pass
from service.runtime.plan import pipeline_of
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
    states = [[draw.integers(-127, 128, (n, 3), dtype=np.int8) for n in pair] for pair in lengths]
    pairs = [JoinedPair(first, second, billed=1) for first, second in states]
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
    pair = JoinedPair(np.ones(3, np.float32), np.zeros(3, np.float32), billed=7)
    feeds = joined_feeds([pair, pair], "00.vector")
    assert feeds["first:00.vector"].shape == (2, 3)
    assert pair.kept == 1
    assert pair.fingerprint == pair.fingerprint != JoinedPair(pair.second, pair.second, billed=7).fingerprint


def test_a_student_that_is_let_go_is_freed_at_once(tmp_path: Path, build_bundle: Callable[..., Path]) -> None:
    path = build_bundle(tmp_path / "split", task="rank", pairs="separate", joined=True)
    student = Student(load_bundle(path))
    reference = weakref.ref(student)
    gc.disable()
    try:
        del student
        assert reference() is None
    finally:
        gc.enable()


def test_a_long_first_text_counts(split: Student) -> None:
    long, short = np.zeros((64, 8), np.int8), np.zeros((3, 8), np.int8)
    assert JoinedPair(short, long, billed=1).kept == 64
    assert JoinedPair(long, short, billed=1).kept == 64 * 64 // 16
    pairs = split.encoder.encode([("good film " * 15, "bad")])
    going = split.begin(joined_feeds(split.join(pairs), "00.state"), split.policy())
    stepped = going.step()
    assert stepped.longest == joined_length(32, 3)


def test_passes_with_first_texts_of_other_lengths_are_merged() -> None:
    manifest = _two_joins()
    plan, seen = pipeline_of(manifest), []

    def run(stage: int, feeds: Any, outputs: Any) -> Any:
        seen.append((stage, feeds["first"].shape, feeds["second"].shape))
        return {"score": np.zeros(len(feeds["first"]), np.float32), "mixed": feeds["first"].astype(np.float32)}

    parts = []
    for first, second in ((3, 5), (7, 2)):
        pair = JoinedPair(np.ones((first, 4), np.int8), np.ones((second, 4), np.int8), billed=1)
        going = Pass(plan, run, joined_feeds([pair], "00.state"), ExitPolicy((None,)))
        going.step()
        parts.append(going)
    merged = Pass.merge(parts)
    merged.step()
    assert seen[-1] == (1, (2, 7, 4), (2, 5, 4))
    assert merged.done


def _two_joins() -> Manifest:
    """A pipeline with two joined stages, the first with an exit."""
    sides = {"first": "first:00.state", "second": "second:00.state"}
    score = Tensor(dtype="float32", dims=("B",))
    lower = Stage(
        id="00",
        inputs={"input_ids": "input_ids"},
        outputs={"state": Tensor(dtype="int8", dims=("B", "T", 4))},
        cacheable=True,
    )
    joined = [Stage(id=name, scope="pair", inputs=sides, outputs={"score": score}) for name in ("01", "02")]
    graphs = {stage.id: f"stages/{stage.id}.onnx" for stage in (lower, *joined)}
    files = {name: FileEntry(sha256="0" * 64, bytes=1) for name in (*graphs.values(), "tokenizer.json", "golden.json")}
    return Manifest(
        name="two",
        task="rank",
        pairs="separate",
        requires=("joined",),
        max_tokens=16,
        stages=(lower, *joined),
        exits=(
            Exit(id="early", stage="01", output="score", depth=0.5),
            Exit(id="full", stage="02", output="score", depth=1.0),
        ),
        precisions={"fp32": Precision(files=graphs, golden_atol=0.1)},
        default_precision="fp32",
        files=files,
        provenance=Provenance(made_by="test", created="now"),
    )


def _embeds(document: dict[str, Any]) -> None:
    document["stages"][1]["outputs"] = {"embedding": {"dtype": "float32", "dims": ["B", 6]}}
    document["exits"][0]["output"] = "embedding"


def _is_embed(document: dict[str, Any]) -> None:
    _embeds(document)
    document |= {"task": "embed", "space_id": "s", "embedding_dimensions": 6}


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
        (_embeds, "exits: joined texts end in logits or in a score"),
        (_is_embed, "task: embed reads single texts"),
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
