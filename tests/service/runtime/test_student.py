"""The student's own pass on real graphs: company, exits, golden samples."""

import json

import numpy as np
import pytest

from service.bundle.load import Bundle, Golden, GoldenSample
from service.bundle.manifest import Tensor
from service.errors import GoldenMismatch, GraphMismatch, SettingsInvalid
from service.runtime.encode import pad
from service.runtime.heads import ExitPolicy
from service.runtime.student import Student, batches_by_length

TEXTS = ["this film is great", "it was awful, very bad!", "where is it?", "", "my card is very not usual but okay"]


def test_sure_texts_leave_early(student):
    outcomes = student.run(student.encoder.encode(TEXTS), student.policy())
    assert [outcome.exit_index for outcome in outcomes] == [0, 0, 1, 1, 0]
    assert {outcome.raw.shape for outcome in outcomes} == {(3,)}


def test_never_goes_to_full_depth(student):
    encoded = student.encoder.encode(TEXTS)
    outcomes = student.run(encoded, student.policy("never"))
    assert {outcome.exit_index for outcome in outcomes} == {1}
    np.testing.assert_array_equal([outcome.raw for outcome in outcomes], student.all_exits(encoded)[-1])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_all_stages_as_one_give_the_same_to_the_bit(make_student, precision):
    student = make_student(precision=precision)
    encoded = student.encoder.encode(TEXTS * 7)
    feeds = pad(encoded, pad_id=student.pad_id, with_types=student.full_depth.pipeline.reads_types)
    stepped = student.full_depth.begin(feeds, student.policy("never")).step()
    assert (stepped.exit_index, stepped.leaving) == (1, len(encoded))
    np.testing.assert_array_equal(stepped.raw, student.all_exits(encoded)[-1])


def test_all_stages_as_one_are_proved_by_the_golden_samples(student):
    student.check_golden()
    whole = student.full_depth._run_stage
    student.full_depth._run_stage = lambda *args: {name: value + 1 for name, value in whole(*args).items()}
    with pytest.raises(GoldenMismatch, match="golden sample 0, all stages as one: differs by 1"):
        student.check_golden()


def test_leaving_early_gives_that_exit_s_output(student):
    encoded = student.encoder.encode(TEXTS)
    exits = student.all_exits(encoded)
    for i, outcome in enumerate(student.run(encoded, student.policy())):
        np.testing.assert_allclose(outcome.raw, exits[outcome.exit_index][i], atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("setting", ["default", "never"])
def test_an_answer_does_not_depend_on_company_or_padding(make_student, precision, setting):
    student = make_student(precision=precision)
    policy = student.policy(setting)
    encoded = student.encoder.encode(TEXTS)
    together = student.run(encoded * 13, policy)[: len(encoded)]
    for item, mate in zip(encoded, together, strict=True):
        for length in (None, 20, 32):
            alone = student.run_padded(pad([item], pad_id=student.pad_id, length=length), policy)
            assert alone.exit_index[0] == mate.exit_index
            np.testing.assert_allclose(alone.raw[0], mate.raw, atol=1e-5)


def test_each_item_may_have_its_policy(student):
    encoded = student.encoder.encode([TEXTS[0]] * 3)
    outcomes = student.run(encoded, [ExitPolicy((None,)), ExitPolicy((0.5,)), ExitPolicy((None,))])
    assert [outcome.exit_index for outcome in outcomes] == [1, 0, 1]


def test_policies_are_kept_and_risks_bounded(student, monkeypatch):
    monkeypatch.setattr("service.runtime.student.MOST_POLICIES", 3)
    named = [student.policy(), student.policy("never")]
    assert student.policy(0.02) is student.policy(0.02)
    asked = [student.policy(risk / 100) for risk in range(1, 20)]
    assert asked == [student.policy(risk / 100) for risk in range(1, 20)]
    assert len(student._by_risk) <= 3
    assert all(one is other for one, other in zip(named, [student.policy(), student.policy("never")], strict=True))


def test_an_empty_batch(student):
    assert student.run([], student.policy()) == []


def test_all_exits_at_any_length(student):
    encoded = student.encoder.encode(TEXTS)
    for short, long in zip(student.all_exits(encoded), student.all_exits(encoded, length=32), strict=True):
        np.testing.assert_allclose(short, long, atol=1e-5)


def test_pairs_are_read_as_one_sequence(make_student):
    student = make_student(pairs="joint")
    encoded = student.encoder.encode([("the film is good", "is it good?")])
    assert encoded[0].token_type_ids.max() == 1
    assert student.run(encoded, student.policy())[0].raw.shape == (3,)
    student.check_golden()


def test_an_embedder_has_one_exit(make_student):
    student = make_student(task="embed")
    student.check_golden()
    outcomes = student.run(student.encoder.encode(TEXTS), student.policy())
    assert {(outcome.exit_index, outcome.raw.shape) for outcome in outcomes} == {(0, (6,))}


def test_what_it_says_of_itself(student):
    assert repr(student) == "<Student toy fp32 on onnxruntime>"


class TestGolden:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_the_published_outputs_are_reproduced(self, make_student, precision):
        make_student(precision=precision).check_golden()

    def changed(self, bundle: Bundle, **fields) -> Student:
        samples = list(bundle.golden.samples)
        old = samples[2]
        values = {name: getattr(old, name) for name in ("text", "text_pair", "input_ids", "outputs")} | fields
        samples[2] = GoldenSample(**values)
        return Student(Bundle(bundle.path, bundle.manifest, Golden(tuple(samples))), precision="fp32")

    def outputs(self, bundle: Bundle, exit_id: str, **changes):
        outputs = json.loads(json.dumps(bundle.golden.samples[2].outputs))
        values = outputs["fp32"][exit_id]
        for index, change in changes.items():
            values[int(index.strip("_"))] += change
        return outputs

    def test_other_ids_are_named(self, bundle):
        student = self.changed(bundle, input_ids=(2, 3))
        with pytest.raises(GoldenMismatch, match="sample 2: the tokenizer gives other ids"):
            student.check_golden()

    @pytest.mark.parametrize("exit_id", ["early", "full"])
    def test_other_outputs_are_named_by_sample_and_exit(self, bundle, exit_id):
        student = self.changed(bundle, outputs=self.outputs(bundle, exit_id, _0=0.01))
        with pytest.raises(GoldenMismatch, match=f"toy fp32 on onnxruntime: golden sample 2, exit '{exit_id}'"):
            student.check_golden()

    def test_within_the_tolerance_is_fine(self, bundle):
        self.changed(bundle, outputs=self.outputs(bundle, "full", _0=5e-5)).check_golden()

    def test_another_number_of_values_is_named(self, bundle):
        outputs = self.outputs(bundle, "full")
        outputs["fp32"]["full"].append(0.0)
        with pytest.raises(GoldenMismatch, match="3 values, not 4"):
            self.changed(bundle, outputs=outputs).check_golden()


class TestProof:
    def test_the_largest_batch_runs(self, student):
        student.prove(token_budget=100)

    def test_the_longest_item_must_fit(self, student):
        with pytest.raises(SettingsInvalid, match="token budget 31 is below the 32 tokens"):
            student.prove(token_budget=31)


def test_exits_of_different_shapes_are_refused(bundle):
    lower, upper = bundle.manifest.stages
    other = upper.model_copy(update={"outputs": {"logits": Tensor(dtype="float32", dims=("B", 4))}})
    manifest = bundle.manifest.model_copy(update={"stages": (lower, other)})
    with pytest.raises(GraphMismatch, match="different shapes"):
        Student(Bundle(bundle.path, manifest, bundle.golden))


def test_batches_by_length_hold_every_item_once(student):
    encoded = student.encoder.encode(TEXTS)
    batches = batches_by_length(encoded, 2)
    assert batches == [[3, 0], [2, 1], [4]]
    assert batches_by_length([], 2) == []
