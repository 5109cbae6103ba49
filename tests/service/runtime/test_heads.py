"""Heads: safe scores, confidence rules, exit policies, answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import RunFailed
from service.runtime.heads import (
    ExitPolicy,
    binary_embedding,
    certainty,
    confidence,
    cosines,
    embedding_answer,
    int8_embedding,
    label_answer,
    leaving,
    likeliest,
    never,
    policy_for,
    sigmoid,
    softmax,
    unit_rows,
)

RULES = ("max_probability", "margin", "entropy")
logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(2, 9)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)


class TestSoftmax:
    @given(logits, st.floats(0.05, 20))
    def test_rows_are_probabilities(self, raw, temperature):
        scores = softmax(raw, temperature=temperature)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-9)
        assert (scores >= 0).all()

    def test_temperature_flattens(self):
        raw = np.array([2.0, 0.0], np.float32)
        assert softmax(raw, temperature=1.0)[0] == pytest.approx(1 / (1 + np.exp(-2)))
        assert softmax(raw, temperature=4.0)[0] == pytest.approx(1 / (1 + np.exp(-0.5)))

    def test_rows_with_nan_or_infinity_are_nan_without_warning(self):
        raw = np.array([[np.nan, 0], [np.inf, 0], [1, 1]], np.float32)
        assert np.isnan(softmax(raw)).any(axis=1).tolist() == [True, True, False]

    @given(logits)
    def test_a_row_does_not_depend_on_its_company(self, raw):
        assert (softmax(raw) == np.concatenate([softmax(row[None]) for row in raw])).all()


class TestConfidence:
    @given(logits)
    @pytest.mark.parametrize("rule", RULES)
    def test_lies_between_0_and_1(self, rule, raw):
        sure = confidence(softmax(raw), rule)
        assert sure.shape == (len(raw),)
        assert ((sure >= 0) & (sure <= 1 + 1e-12)).all()

    @given(logits, st.floats(0.05, 20))
    @pytest.mark.parametrize("rule", RULES)
    def test_certainty_is_the_same_to_the_last_bit(self, rule, raw, temperature):
        sure = certainty(raw, temperature=temperature, rule=rule)
        assert sure.tolist() == confidence(softmax(raw, temperature=temperature), rule).tolist()

    @pytest.mark.parametrize(("rule", "least"), [("max_probability", 0.25), ("margin", 0.0), ("entropy", 0.0)])
    def test_extremes(self, rule, least):
        scores = np.array([[0.25] * 4, [0, 1, 0, 0]], float)
        assert confidence(scores, rule) == pytest.approx([least, 1.0])


class TestLeaving:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [np.nan, np.nan]])

    def test_at_or_above_the_threshold(self):
        policy = ExitPolicy((None, 0.9))
        assert leaving(self.scores, policy, 1).tolist() == [True, False, False]

    def test_nobody_without_a_threshold(self):
        assert leaving(self.scores, ExitPolicy((None, 0.9)), 0).tolist() == [False, False, False]

    def test_by_the_policy_s_rule(self):
        assert leaving(self.scores, ExitPolicy((0.85,), "margin"), 0).tolist() == [False, False, False]
        assert leaving(self.scores, ExitPolicy((0.75,), "margin"), 0).tolist() == [True, False, False]


class TestPolicyFor:
    @pytest.mark.parametrize(
        ("exit", "threshold", "requested", "applied"),
        [
            ("default", 0.7, 0.05, 0.05),
            ("never", None, None, None),
            (0.01, 0.9, 0.01, 0.01),
            (0.03, 0.9, 0.03, 0.01),
            (0.5, 0.7, 0.5, 0.05),
            (0.009, None, 0.009, None),
        ],
    )
    def test_the_largest_certified_point_within_the_risk(self, bundle, exit, threshold, requested, applied):
        policy = policy_for(bundle.manifest, backend="onnxruntime", precision="fp32", exit=exit)
        assert policy.thresholds == (threshold,)
        assert (policy.risk_requested, policy.risk_applied) == (requested, applied)

    def test_no_certificate_no_exits(self, bundle, make_student):
        policy = policy_for(bundle.manifest, backend="openvino", precision="fp32", exit=0.05)
        assert (policy.thresholds, policy.risk_requested, policy.risk_applied) == ((None,), 0.05, None)
        assert make_student(certified=False).policy().thresholds == (None,)

    def test_no_default_risk_is_full_depth(self, make_student):
        assert make_student(default_risk=None).policy("default") == ExitPolicy((None,))

    def test_never(self, bundle):
        assert never(bundle.manifest) == ExitPolicy((None,))


class TestLabelAnswer:
    labels = ("a", "b", "c")
    raw = np.array([0.0, 2.0, 1.0], np.float32)

    def test_the_likeliest(self):
        answer = label_answer(self.raw, temperature=1.0, labels=self.labels)
        assert (answer.label, answer.labels) == ("b", ())
        assert answer.score == pytest.approx(0.6652, abs=1e-4)

    @pytest.mark.parametrize(("top_k", "listed"), [(1, "b"), (2, "bc"), (3, "bca"), (9, "bca")])
    def test_top_k_falls(self, top_k, listed):
        answer = label_answer(self.raw, temperature=0.5, labels=self.labels, top_k=top_k)
        assert "".join(entry.label for entry in answer.labels) == listed
        assert answer.labels[0].score == answer.score
        scores = [entry.score for entry in answer.labels]
        assert scores == sorted(scores, reverse=True)

    def test_ties_go_to_the_first_label(self):
        answer = label_answer(np.zeros(3, np.float32), temperature=1.0, labels=self.labels, top_k=3)
        assert answer.label == "a"
        assert [entry.label for entry in answer.labels] == ["a", "b", "c"]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_fails(self, bad):
        with pytest.raises(RunFailed):
            label_answer(np.array([bad, 1, 2], np.float32), temperature=1.0, labels=self.labels)


class TestEmbeddingAnswer:
    raw = np.array([3.0, 4.0, 12.0], np.float32)

    def test_unit_length_after_the_cut(self):
        assert embedding_answer(self.raw, dimensions=2) == pytest.approx([0.6, 0.8])
        assert np.linalg.norm(embedding_answer(self.raw)) == pytest.approx(1)

    def test_raw(self):
        answer = embedding_answer(self.raw, normalize=False)
        assert answer.dtype == np.float32
        assert answer.tolist() == [3, 4, 12]

    def test_zero_stays_zero(self):
        assert embedding_answer(np.zeros(3, np.float32)).tolist() == [0, 0, 0]

    def test_what_is_not_finite_fails(self):
        with pytest.raises(RunFailed):
            embedding_answer(np.array([np.nan, 1], np.float32))


class TestSigmoid:
    def test_it_keeps_the_order_where_it_saturates_no_further(self):
        raw = np.array([-40.0, -1.0, 0.0, 1.0, 30.0], np.float32)
        shown = sigmoid(raw)
        assert shown.dtype == np.float64
        assert (np.diff(shown) > 0).all()
        assert shown[1] + shown[3] == pytest.approx(1)

    def test_the_temperature_divides(self):
        assert sigmoid(np.array([2.0]), temperature=2.0).tolist() == sigmoid(np.array([1.0])).tolist()


class TestCosines:
    rows = np.random.default_rng(0).normal(size=(50, 33)).astype(np.float32)

    def test_rows_have_length_one_and_zero_stays_zero(self):
        rows = unit_rows(np.concatenate([self.rows, np.zeros((1, 33), np.float32)]))
        assert np.linalg.norm(rows[:-1], axis=1) == pytest.approx(1)
        assert not rows[-1].any()

    def test_a_row_does_not_depend_on_its_company(self):
        units = unit_rows(self.rows)
        together = cosines(units[0], units)
        for at in range(len(units)):
            alone = unit_rows(self.rows[at : at + 1])
            assert (alone[0] == units[at]).all()
            assert cosines(units[0], alone)[0] == together[at]
        assert together[0] == pytest.approx(1, abs=1e-6)
        assert (np.abs(together) <= 1).all()


class TestSmallEmbeddings:
    def test_int8_is_127_times_the_unit_vector(self):
        unit = embedding_answer(np.array([3.0, -4.0, 0.0], np.float32))
        assert int8_embedding(unit).tolist() == [76, -102, 0]

    def test_sign_bits_come_back(self):
        vector = np.random.default_rng(1).normal(size=20).astype(np.float32)
        packed = binary_embedding(vector)
        assert packed.dtype == np.uint8
        assert np.unpackbits(packed)[:20].tolist() == (vector > 0).astype(int).tolist()
        assert np.unpackbits(packed)[20:].tolist() == [0] * 4


@given(logits, st.floats(0.1, 5))
def test_the_likeliest_of_a_batch_are_those_of_its_rows(raw: np.ndarray, temperature: float) -> None:
    names = tuple(map(str, range(raw.shape[1])))
    found = likeliest(raw, temperature=temperature)
    for top_k in (0, 1):
        alone = [label_answer(row, temperature=temperature, labels=names, top_k=top_k) for row in raw]
        assert [names[place] for place in found.places] == [answer.label for answer in alone]
        assert found.probabilities == pytest.approx([answer.score for answer in alone], rel=1e-12)
