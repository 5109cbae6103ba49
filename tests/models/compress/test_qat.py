"""Training for int8: what is trained is what is exported."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.compress.int8 import Int8Settings
from models.compress.pipeline import StageRunner, quantise_stages
from models.compress.qat import FakeInt8Linear, bake, fake_quantise, fake_rows, measure_ranges, stage_ranges
from models.compress.ranges import Range
from models.compress.token_table import quantise_token_table
from models.export.stages import export_stages
from models.students.encoder import EncoderConfig, EncoderStudent


def _logits(student, batches) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = [student(torch.as_tensor(b["input_ids"]), torch.as_tensor(b["attention_mask"])) for b in batches]
    return [np.concatenate([out.exits[i].numpy() for out in outputs]) for i in range(len(outputs[0].exits))]


def test_ranges_are_measured_for_layers_that_see_tokens(student, batches):
    ranges = measure_ranges(student, batches)
    names = {f"layers.{i}.{part}" for i in (0, 1) for part in ("query", "key", "value", "output", "up", "down")}
    assert set(ranges) == names | {"exits.0.local.features"}
    assert ranges["layers.0.query"] == ranges["layers.0.key"]
    assert ranges["layers.0.down"].low == 0


def test_measuring_leaves_the_student_as_it_was(student, batches):
    student.train()
    before = copy.deepcopy(student.state_dict())
    measure_ranges(student, batches[:1])
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(part._forward_pre_hooks for part in student.modules())


def test_no_batches_is_an_error(student):
    with pytest.raises(ValueError, match="at least one batch"):
        measure_ranges(student, [])


def test_a_range_for_something_else_than_a_linear_layer_is_an_error(student):
    with pytest.raises(ValueError, match=r"layers\.0 is not a plain linear layer"):
        fake_quantise(student, {"layers.0": Range(low=-1.0, high=1.0)})


def test_parameters_keep_their_names_objects_and_copies_stay_apart(student, batches):
    before = dict(student.named_parameters())
    fake_quantise(student, measure_ranges(student, batches))
    after = dict(student.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    twin = copy.deepcopy(student)
    assert isinstance(twin.layers[0].query, FakeInt8Linear)
    assert twin.layers[0].query.span == student.layers[0].query.span
    bake(twin)
    assert type(twin.layers[0].query) is nn.Linear
    assert isinstance(student.layers[0].query, FakeInt8Linear)


def test_gradients_pass_through_the_rounding_but_not_beyond_the_range():
    layer = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        layer[0].weight.fill_(0.5)
    fake_quantise(layer, {"0": Range(low=-1.0, high=1.0)})
    source = torch.tensor([[0.3, 5.0]], requires_grad=True)
    layer(source).sum().backward()
    assert source.grad is not None
    assert source.grad.tolist() == [[0.5, 0.0]]
    assert layer[0].weight.grad is not None
    assert layer[0].weight.grad[0].tolist() == pytest.approx([0.3, 1.0], abs=0.01)


def test_rounded_rows_round_to_themselves():
    rows = fake_rows(torch.randn(5, 7, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(fake_rows(rows), rows, atol=1e-6)


def test_the_exported_int8_graphs_compute_what_was_trained(student, batches, unseen, tmp_path):
    ranges = measure_ranges(student, batches)
    fake_quantise(student, ranges)
    _train_a_little(student, batches)
    trained = _logits(student, unseen)
    bake(student)

    modules = student.stages()
    exported = export_stages(modules, tmp_path)
    onnx.save(quantise_token_table(onnx.load(exported[0].path)), exported[0].path)
    stages = [item.stage for item in exported]
    fp32 = {item.stage.id: item.path for item in exported}
    int8 = {stage_id: tmp_path / f"{stage_id}.int8.onnx" for stage_id in fp32}
    by_stage = dict(zip(fp32, stage_ranges(student, modules, ranges), strict=True))
    receipt = quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=Int8Settings(), trained=by_stage)
    assert receipt.name == "int8 trained"
    runner = StageRunner(stages, int8)
    found = [runner(batch) for batch in unseen]
    for i, wanted in enumerate(trained):
        got = np.concatenate([known[f"{i:02d}.logits"] for known in found])
        # a value on the border of two levels may go either way; nearly all rows are the same to rounding
        differences = np.abs(got - wanted).max(axis=1)
        assert np.median(differences) < 1e-4
        assert differences.max() < 0.1 * np.abs(wanted).max()


def _train_a_little(student, batches) -> None:
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05)
    for batch in batches:
        ids, mask = torch.as_tensor(batch["input_ids"]), torch.as_tensor(batch["attention_mask"])
        loss = sum(nn.functional.cross_entropy(logits, ids[:, 0] % 4) for logits in student(ids, mask).exits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    student.eval()


def test_ranges_of_pairs_see_which_text_a_token_is_of():
    student = EncoderStudent(
        EncoderConfig(
            vocabulary=20, width=2, layers=1, hidden=16, heads=2, feed_forward=32, exits=(1,), max_tokens=8, pairs=True
        )
    )
    with torch.no_grad():
        student.embeddings.second.copy_(torch.linspace(-50, 50, 16))
    ids = torch.arange(1, 13).reshape(2, 6)
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = alone | {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)}
    first, each = (measure_ranges(student, [batch])["layers.0.query"] for batch in (alone, both))
    assert first != each
