"""The training loop: schedule, averaging, and a killed run that continues as if it had not been."""

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models.teachers.fit import Fit, Group, accuracy, all_batches, fit, scheduled

PLAN = Fit(epochs=4, batch_items=4, warm_up=0.1, average="none", seed=1, checkpoint_steps=5)
LENGTHS = np.full(30, 7)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def trained(plan=PLAN, *, checkpoint=None, stop_at=None):
    model = network()
    torch.manual_seed(9)
    inputs = torch.randn(30, 3)

    def loss(rows):
        return (model(inputs[rows]).squeeze(1) - inputs[rows].sum(1)).square().mean()

    def after_step(done):
        if done == stop_at:
            raise KeyboardInterrupt

    groups = (Group(tuple(model.parameters()), 0.01, 0.0),)
    batches = all_batches(LENGTHS, settings=plan)
    with contextlib.suppress(KeyboardInterrupt):
        fit(model, groups, loss, batches, settings=plan, checkpoint=checkpoint, after_step=after_step)
    return model.state_dict()


def same(left, right) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_rate_rises_then_falls_to_nothing():
    rates = [scheduled(step, steps=100, settings=PLAN) for step in range(100)]
    assert rates[9] == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.02
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_averaged_tail_has_a_constant_rate():
    rates = [scheduled(step, steps=100, settings=replace(PLAN, average="swa")) for step in range(100)]
    assert rates[70:] == [0.25] * 30
    assert rates[69] > 0.25


def test_part_of_an_epoch_is_possible():
    assert len(all_batches(LENGTHS, settings=replace(PLAN, epochs=0.5))) == 4
    assert len(all_batches(LENGTHS, settings=replace(PLAN, epochs=1.5))) == 12


@pytest.mark.parametrize("average", ["none", "swa", "ema"])
def test_a_killed_run_ends_where_the_whole_one_does(tmp_path, average):
    plan = replace(PLAN, average=average)
    whole = trained(plan)
    trained(plan, checkpoint=tmp_path / "run.ckpt", stop_at=28)
    assert (tmp_path / "run.ckpt").exists()
    assert same(trained(plan, checkpoint=tmp_path / "run.ckpt"), whole)
    assert list(tmp_path.glob("*.partial")) == []


class Bag(nn.Module):
    """A table whose gradients are sparse, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 4, sparse=True)
        self.top = nn.Linear(4, 1)

    def forward(self, rows):
        return self.top(self.table(torch.as_tensor(rows)))


def bag_trained(plan, *, checkpoint=None, stop_at=None):
    model = Bag()

    def loss(rows):
        return (model(rows).squeeze(1) - torch.as_tensor(rows).float() / 30).square().mean()

    def after_step(done):
        if done == stop_at:
            raise KeyboardInterrupt

    groups = (
        Group(tuple(model.table.parameters()), 0.05, 0.0, sparse=True),
        Group(tuple(model.top.parameters()), 0.01, 0.01),
    )
    batches = all_batches(LENGTHS, settings=plan)
    with contextlib.suppress(KeyboardInterrupt):
        fit(model, groups, loss, batches, settings=plan, checkpoint=checkpoint, after_step=after_step)
    return model.state_dict()


@pytest.mark.parametrize("average", ["none", "swa", "ema"])
def test_a_killed_run_with_sparse_rows_ends_where_the_whole_one_does(tmp_path, average):
    plan = replace(PLAN, average=average)
    whole = bag_trained(plan)
    bag_trained(plan, checkpoint=tmp_path / "run.ckpt", stop_at=28)
    assert same(bag_trained(plan, checkpoint=tmp_path / "run.ckpt"), whole)


def test_sparse_rows_move_only_where_they_are_used():
    before, after = Bag().state_dict(), bag_trained(PLAN)
    moved = (before["table.weight"] != after["table.weight"]).any(1)
    assert moved.tolist() == [True] * 30 + [False] * 10


def test_a_run_is_a_function_of_its_seed():
    assert same(trained(), trained())
    assert not same(trained(), trained(replace(PLAN, seed=2)))


@pytest.mark.parametrize("average", ["swa", "ema"])
def test_the_averaged_weights_are_left_in_the_model(average):
    assert not same(trained(), trained(replace(PLAN, average=average)))


def test_a_loss_that_is_not_finite_stops_the_run():
    model = network()
    groups = (Group(tuple(model.parameters()), 0.01, 0.0),)
    batches = all_batches(LENGTHS, settings=PLAN)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(model, groups, lambda rows: model(torch.full((2, 3), float("nan"))).sum(), batches, settings=PLAN)


def test_progress_ends_at_the_last_step():
    seen = []
    model = network()
    groups = (Group(tuple(model.parameters()), 0.01, 0.0),)
    batches = all_batches(LENGTHS, settings=PLAN)
    fit(
        model,
        groups,
        lambda rows: model(torch.ones(2, 3)).sum(),
        batches,
        settings=PLAN,
        progress=lambda done, total, note: seen.append((done, total, note)),
    )
    assert seen[-1][:2] == (len(batches), len(batches))
    assert seen[-1][2].startswith("loss ")


def test_accuracy():
    assert accuracy(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 0])) == 0.5
