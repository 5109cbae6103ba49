"""A pass through scripted stages: who goes on, with what, and what happens when a stage fails."""

from dataclasses import replace

import numpy as np
import pytest

from service.bundle.manifest import Manifest
from service.errors import RunFailed
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import UNREACHED, Pass
from service.runtime.plan import Carried, pipeline_of

LATER = ExitPolicy((0.9,))


def tensor(*dims):
    return {"dtype": "float32", "dims": dims}


@pytest.fixture
def pipeline():
    """00 has no exit and writes a pooled [B, 2] for the last stage; 01 has an exit; 02 is the last."""
    stages = [
        {
            "id": "00",
            "inputs": {"ids": "input_ids"},
            "outputs": {"hidden": tensor("B", "T", 2), "pooled": tensor("B", 2)},
        },
        {
            "id": "01",
            "inputs": {"h": "00.hidden", "mask": "attention_mask"},
            "outputs": {"hidden": tensor("B", "T", 2), "logits": tensor("B", 2)},
        },
        {"id": "02", "inputs": {"h": "01.hidden", "p": "00.pooled"}, "outputs": {"logits": tensor("B", 2)}},
    ]
    files = {name: {"sha256": "0" * 64, "bytes": 1} for name in ("g", "tokenizer.json", "golden.json")}
    manifest = Manifest.model_validate(
        {
            "name": "scripted",
            "task": "classify",
            "labels": ["a", "b"],
            "max_tokens": 64,
            "stages": stages,
            "exits": [
                {"id": "middle", "stage": "01", "output": "logits", "depth": 0.5, "temperature": 2.0},
                {"id": "full", "stage": "02", "output": "logits", "depth": 1.0},
            ],
            "precisions": {"fp32": {"files": {stage["id"]: "g" for stage in stages}, "golden_atol": 1e-4}},
            "default_precision": "fp32",
            "files": files,
            "provenance": {"made_by": "test", "created": ""},
        }
    )
    return pipeline_of(manifest)


class Stages:
    """Scripted stages. The first id of an item is its logit at the middle exit; every feed is kept."""

    def __init__(self):
        self.feeds = []
        self.wanted = []
        self.poison = None

    def __call__(self, stage, feeds, wanted):
        self.feeds.append(feeds)
        self.wanted.append(set(wanted))
        if stage == 0:
            ids = feeds["ids"]
            return {"hidden": np.stack([ids, ids], axis=2).astype(np.float32) + 0.5, "pooled": ids[:, :2] * 1.0}
        hidden = feeds["h"]
        if self.poison is not None and (hidden[:, 0, 0] == self.poison + 0.5).any():
            raise RunFailed("poison")
        return {"hidden": hidden + 1, "logits": np.stack([hidden[:, 0, 0], 0 * hidden[:, 0, 0]], axis=1)}


def tokens(*rows):
    longest = max(len(row) for row in rows)
    ids = np.array([list(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def finish(going):
    """item -> (exit, raw) of a pass run to its end."""
    ends = {}
    while not going.done:
        stepped = going.step()
        for row in stepped.rows[stepped.leaves].tolist():
            assert row not in ends
            ends[row] = stepped.exit_index
    return ends


def test_the_plan_carries_only_what_later_stages_read(pipeline):
    carried = [plan.carried for plan in pipeline.stages]
    assert carried == [
        (Carried("attention_mask", True), Carried("00.hidden", True), Carried("00.pooled", False)),
        (Carried("00.pooled", False), Carried("01.hidden", True)),
        (),
    ]
    assert [plan.exit_index for plan in pipeline.stages] == [None, 0, 1]


def test_survivors_go_on_compacted_trimmed_and_zero_padded(pipeline):
    stages = Stages()
    going = Pass(pipeline, stages, tokens([30, 1, 1, 1], [1, 2], [2, 3, 4]), LATER)
    assert going.step().leaves.tolist() == [False, False, False]
    second = going.step()
    assert (second.leaves.tolist(), second.padded_tokens, second.real_tokens) == ([True, False, False], 12, 9)
    assert going.rows.tolist() == [1, 2]
    last = going.step()
    assert (last.leaves.tolist(), last.padded_tokens, last.real_tokens) == ([True, True], 6, 5)
    assert going.done
    assert stages.feeds[1]["h"][1, :, 0].tolist() == [1.5, 2.5, 0, 0]
    assert stages.feeds[1]["mask"].shape == (3, 4)
    assert stages.feeds[2]["h"][:, :, 0].tolist() == [[2.5, 3.5, 0], [3.5, 4.5, 5.5]]
    assert stages.feeds[2]["p"].tolist() == [[1, 2], [2, 3]]


def test_the_caller_s_arrays_are_left_alone(pipeline):
    feeds = tokens([30, 1, 1, 1], [1, 2])
    copies = {name: value.copy() for name, value in feeds.items()}
    finish(Pass(pipeline, Stages(), feeds, LATER))
    assert all((feeds[name] == copies[name]).all() for name in feeds)


def test_each_item_leaves_by_its_own_policy(pipeline):
    policies = [LATER, ExitPolicy((None,)), ExitPolicy((0.5,)), LATER]
    ends = finish(Pass(pipeline, Stages(), tokens([30], [30], [2], [2]), policies))
    assert ends == {0: 0, 1: 1, 2: 0, 3: 1}


def test_policies_stay_with_their_items_when_others_leave(pipeline):
    going = Pass(pipeline, Stages(), tokens([30], [30], [30]), [ExitPolicy((None,)), LATER, ExitPolicy((None,))])
    going.step()
    going.drop(np.array([True, False, False]))
    assert finish(going) == {1: 0, 2: 1}


def test_the_temperature_flattens_the_confidence(pipeline):
    # logit 2.5: 0.92 at temperature 1, 0.78 at the exit's 2
    assert finish(Pass(pipeline, Stages(), tokens([2]), ExitPolicy((0.8,)))) == {0: 1}
    assert finish(Pass(pipeline, Stages(), tokens([2]), ExitPolicy((0.77,)))) == {0: 0}


def test_drop_before_the_first_stage(pipeline):
    stages = Stages()
    going = Pass(pipeline, stages, tokens([30, 1, 1], [1, 2], [1]), LATER)
    going.drop(np.array([True, False, False]))
    finish(going)
    assert stages.feeds[0]["ids"].tolist() == [[1, 2], [1, 0]]


def test_dropping_everyone_ends_the_pass(pipeline):
    going = Pass(pipeline, Stages(), tokens([1], [2]), LATER)
    going.drop(np.array([True, True]))
    assert going.done


def test_a_failed_step_leaves_the_pass_as_it_was_and_halves_go_on(pipeline):
    stages = Stages()
    going = Pass(pipeline, stages, tokens([30], [1], [7], [2]), LATER)
    going.step()
    stages.poison = 7
    with pytest.raises(RunFailed):
        going.step()
    first, second = going.halves()
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 1], [2, 3])
    assert finish(first) == {0: 0, 1: 1}
    with pytest.raises(RunFailed):
        second.step()
    poisoned, spared = second.halves()
    assert finish(spared) == {3: 1}
    with pytest.raises(RunFailed):
        poisoned.step()


def test_a_graph_that_loses_items_is_an_error(pipeline):
    stages = Stages()

    def lossy(stage, feeds, wanted):
        return {name: value[:1] for name, value in stages(stage, feeds, wanted).items()}

    going = Pass(pipeline, lossy, tokens([1], [2]), LATER)
    with pytest.raises(RunFailed, match="wrote 1 items, not 2"):
        while not going.done:
            going.step()


class TestExitsNobodyTakes:
    """An exit is computed where somebody may leave, and nowhere else."""

    def wanted(self, pipeline, *rows, policies):
        stages = Stages()
        finish(Pass(pipeline, stages, tokens(*rows), policies))
        return stages.wanted

    def test_an_exit_at_which_anybody_may_leave_is_computed(self, pipeline):
        wanted = [{"hidden", "pooled"}, {"hidden", "logits"}, {"logits"}]
        assert self.wanted(pipeline, [1], policies=LATER) == wanted
        assert self.wanted(pipeline, [1], [1], policies=[ExitPolicy((None,)), LATER]) == wanted

    def test_one_at_which_nobody_may_is_not(self, pipeline):
        wanted = [{"hidden", "pooled"}, {"hidden"}, {"logits"}]
        assert self.wanted(pipeline, [30], policies=ExitPolicy((None,))) == wanted
        nobody = [ExitPolicy((None,), "margin"), ExitPolicy((None,), "entropy")]
        assert self.wanted(pipeline, [30], [30], policies=nobody) == wanted

    def test_it_says_that_nobody_was_looked_at(self, pipeline):
        going = Pass(pipeline, Stages(), tokens([30], [1]), ExitPolicy((None,)))
        stepped = [going.step() for _ in range(3)]
        assert [step.raw is None for step in stepped] == [True, True, False]
        assert [step.leaving for step in stepped] == [0, 0, 2]

    def test_a_threshold_out_of_reach_computes_it_and_keeps_everybody(self, pipeline):
        going = Pass(pipeline, Stages(), tokens([30], [1]), ExitPolicy((UNREACHED,)))
        stepped = [going.step() for _ in range(3)]
        assert [step.raw is None for step in stepped] == [True, False, False]
        assert [step.leaving for step in stepped] == [0, 0, 2]

    def test_once_those_who_may_have_left_it_is_not(self, pipeline):
        stages = Stages()
        going = Pass(pipeline, stages, tokens([1], [1]), [LATER, ExitPolicy((None,))])
        going.step()
        going.drop(np.array([True, False]))
        finish(going)
        assert stages.wanted[1] == {"hidden"}

    def test_a_stage_that_only_an_exit_reads_is_not_run(self, pipeline):
        first, middle, last = pipeline.stages
        carried = (Carried("00.pooled", False), Carried("00.hidden", True))
        aside = replace(middle, writes=(), names=(), names_with_exit=("logits",), carried=carried)
        last = replace(last, inputs=(("h", "00.hidden"), ("p", "00.pooled")))
        stages = Stages()
        going = Pass(replace(pipeline, stages=(first, aside, last)), stages, tokens([30]), ExitPolicy((None,)))
        assert finish(going) == {0: 1}
        assert stages.wanted == [{"hidden", "pooled"}, {"logits"}]


def test_rows_with_nan_do_not_leave_early(pipeline):
    stages = Stages()

    def nan(stage, feeds, wanted):
        outputs = stages(stage, feeds, wanted)
        if stage == 1:
            outputs["logits"][0] = np.nan
        return outputs

    assert finish(Pass(pipeline, nan, tokens([30], [30]), LATER)) == {0: 1, 1: 0}


class TestMerge:
    def begun(self, pipeline, stages, *rows, policies=LATER, steps=1):
        going = Pass(pipeline, stages, tokens(*rows), policies)
        for _ in range(steps):
            going.step()
        return going

    def test_survivors_of_two_batches_are_numbered_anew_and_padded_to_one_length(self, pipeline):
        stages = Stages()
        first = self.begun(pipeline, stages, [30], [1, 2], [1, 2, 3], steps=2)
        second = self.begun(pipeline, stages, [2, 3, 4, 5], steps=2)
        merged = Pass.merge([first, second])
        assert (merged.rows.tolist(), merged.stage, merged.longest) == ([0, 1, 2], 2, 4)
        last = merged.step()
        assert (last.padded_tokens, last.real_tokens) == (12, 9)
        assert stages.feeds[-1]["h"][:, :, 0].tolist() == [[2.5, 3.5, 0, 0], [2.5, 3.5, 4.5, 0], [3.5, 4.5, 5.5, 6.5]]
        assert stages.feeds[-1]["p"].tolist() == [[1, 2], [1, 2], [2, 3]]

    def test_masks_are_filled_up_with_zeros(self, pipeline):
        stages = Stages()
        merged = Pass.merge([self.begun(pipeline, stages, [1, 1]), self.begun(pipeline, stages, [1, 1, 1])])
        merged.step()
        assert stages.feeds[-1]["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]

    def test_each_item_keeps_its_own_policy(self, pipeline):
        never = ExitPolicy((None,))
        parts = [
            self.begun(pipeline, Stages(), [30], [30], policies=[LATER, never]),
            self.begun(pipeline, Stages(), [30], policies=never),
            self.begun(pipeline, Stages(), [30], policies=LATER),
        ]
        assert finish(Pass.merge(parts)) == {0: 0, 1: 1, 2: 1, 3: 0}

    def test_nobody_may_leave(self, pipeline):
        parts = [
            self.begun(pipeline, Stages(), [30], policies=ExitPolicy((None,), rule)) for rule in ("margin", "entropy")
        ]
        assert finish(Pass.merge(parts)) == {0: 1, 1: 1}

    def test_one_goes_on_without_a_copy(self, pipeline):
        going = self.begun(pipeline, Stages(), [30], [1], steps=2)
        assert Pass.merge([going]) is going
        assert going.rows.tolist() == [0]


def test_ids_that_later_stages_read_are_filled_with_the_padding_id():
    stages = [
        {"id": "00", "inputs": {"ids": "input_ids"}, "outputs": {"hidden": tensor("B", "T", 2)}},
        {"id": "01", "inputs": {"ids": "input_ids", "h": "00.hidden"}, "outputs": {"logits": tensor("B", 2)}},
    ]
    files = {name: {"sha256": "0" * 64, "bytes": 1} for name in ("g", "tokenizer.json", "golden.json")}
    manifest = Manifest.model_validate(
        {
            "name": "ids",
            "task": "classify",
            "labels": ["a", "b"],
            "max_tokens": 64,
            "stages": stages,
            "exits": [{"id": "full", "stage": "01", "output": "logits", "depth": 1.0}],
            "precisions": {"fp32": {"files": {stage["id"]: "g" for stage in stages}, "golden_atol": 1e-4}},
            "default_precision": "fp32",
            "files": files,
            "provenance": {"made_by": "test", "created": ""},
            "tokenizer": {"pad_id": 7},
        }
    )
    fed = []

    def run_stage(stage, feeds, wanted):
        fed.append(feeds["ids"].tolist())
        ids = feeds["ids"]
        return {"hidden": np.ones((*ids.shape, 2), np.float32), "logits": np.ones((len(ids), 2), np.float32)}

    parts = []
    for rows in ([[1]], [[2, 3]]):
        parts.append(Pass(pipeline_of(manifest), run_stage, tokens(*rows), ExitPolicy(())))
        parts[-1].step()
    Pass.merge(parts).step()
    assert fed[-1] == [[1, 7], [2, 3]]
