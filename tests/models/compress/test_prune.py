"""Pruning: what is cut is what counted least, and a sliced student is the whole one with the rest masked."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from models.compress.prune import Importance, Kept, importance, lost, most_important, sliced
from models.students.encoder import EncoderConfig, EncoderStudent
from models.teachers.tokens import Indices

CONFIG = EncoderConfig(
    vocabulary=40,
    width=4,
    layers=2,
    hidden=16,
    heads=4,
    feed_forward=24,
    exits=(0, 1, 2),
    max_tokens=12,
    local_features=4,
)
HEADS, COLUMNS = (1, 3), (0, 2, 3, 7, 20, 23)


@pytest.fixture
def student() -> EncoderStudent:
    torch.manual_seed(0)
    made = EncoderStudent(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="session")
def ids() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 40, (20, 9)))


@pytest.fixture(scope="session")
def mask() -> Tensor:
    return (torch.arange(9) < torch.arange(20)[:, None] % 8 + 2).long()


Loss = Callable[[Indices], Tensor]


def loss_of(student: EncoderStudent, ids: Tensor, mask: Tensor) -> Loss:
    def loss(rows: Indices) -> Tensor:
        wanted = torch.from_numpy(rows) % 4
        return torch.nn.functional.cross_entropy(student(ids[rows], mask[rows]).exits[-1], wanted)

    return loss


def both(count: int) -> list[Indices]:
    return [np.arange(count // 2), np.arange(count // 2, count)]


def masked(student: EncoderStudent, heads: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """Nothing but these heads and columns of each layer reaches the states, in place."""
    width = CONFIG.hidden // CONFIG.heads
    with torch.no_grad():
        for layer in student.layers:
            others = [at for at in range(CONFIG.heads * width) if at // width not in heads]
            layer.output.weight[:, others] = 0
            layer.down.weight[:, [at for at in range(CONFIG.feed_forward) if at not in columns]] = 0


def test_slicing_equals_masking(student: EncoderStudent, ids: Tensor, mask: Tensor):
    kept = Kept(torch.tensor(HEADS), torch.tensor(COLUMNS))
    smaller = sliced(student, [kept, kept])
    masked(student, HEADS, COLUMNS)
    for one, other in zip(smaller(ids, mask).exits, student(ids, mask).exits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_layers_may_keep_different_parts(student: EncoderStudent, ids: Tensor, mask: Tensor):
    first, second = Kept(torch.tensor([0]), torch.tensor([1, 2])), Kept(torch.tensor([2]), torch.tensor([8, 9]))
    smaller = sliced(student, [first, second])
    torch.testing.assert_close(smaller.layers[1].up.weight, student.layers[1].up.weight[[8, 9]])
    torch.testing.assert_close(smaller.layers[1].query.weight, student.layers[1].query.weight[8:12])
    torch.testing.assert_close(smaller.layers[0].value.bias, student.layers[0].value.bias[:4])
    assert torch.isfinite(smaller(ids, mask).exits[-1]).all()


def test_what_is_left_is_a_smaller_student_of_the_same_kind(student: EncoderStudent):
    kept = Kept(torch.tensor(HEADS), torch.tensor(COLUMNS))
    smaller = sliced(student, [kept, kept])
    config = smaller.config
    assert (config.heads, config.attention_width, config.feed_forward) == (2, 8, 6)
    assert (config.hidden, config.exits, len(smaller.exits)) == (16, (0, 1, 2), 3)
    parts = {name: tuple(value.shape) for name, value in smaller.layers[0].state_dict().items()}
    assert parts["query.weight"] == (8, 16)
    assert parts["output.weight"] == (16, 8)
    assert parts["up.weight"] == (6, 16)
    assert parts["down.weight"] == (16, 6)
    assert smaller.stages()[-1].multiply_adds(8) < student.stages()[-1].multiply_adds(8)


def test_a_student_may_be_pruned_again(student: EncoderStudent, ids: Tensor, mask: Tensor):
    once = sliced(student, [Kept(torch.tensor([0, 1, 3]), torch.arange(12))] * 2)
    twice = sliced(once, [Kept(torch.tensor([1, 2]), torch.tensor([0, 2, 3, 7]))] * 2)
    masked(student, (1, 3), (0, 2, 3, 7))
    torch.testing.assert_close(twice(ids, mask).exits[-1], student(ids, mask).exits[-1], rtol=1e-5, atol=1e-6)


def test_keeping_everything_changes_nothing(student: EncoderStudent, ids: Tensor, mask: Tensor):
    whole = sliced(student, [Kept(torch.arange(4), torch.arange(24))] * 2)
    torch.testing.assert_close(whole(ids, mask).exits[-1], student(ids, mask).exits[-1])


def test_the_student_that_was_given_stays_as_it_was(student: EncoderStudent, ids: Tensor, mask: Tensor):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.train()
    found = importance(student, loss_of(student, ids, mask), both(20))
    sliced(student, most_important(found, heads=1, columns=3))
    assert student.training
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not student.layers[0].output._forward_pre_hooks


@pytest.mark.parametrize(
    "kept",
    [
        [Kept(torch.tensor([0]), torch.tensor([0])), Kept(torch.tensor([0, 1]), torch.tensor([0]))],
        [Kept(torch.tensor([], dtype=torch.int64), torch.tensor([0]))] * 2,
        [Kept(torch.tensor([0]), torch.tensor([], dtype=torch.int64))] * 2,
    ],
    ids=["uneven", "no heads", "no columns"],
)
def test_layers_keep_the_same_counts_and_something(student: EncoderStudent, kept: list[Kept]):
    with pytest.raises(ValueError, match="same number of heads and of columns, at least one"):
        sliced(student, kept)


def test_the_only_parts_that_are_used_are_the_important_ones(student: EncoderStudent, ids: Tensor, mask: Tensor):
    masked(student, (2,), (5, 11))
    found = importance(student, loss_of(student, ids, mask), both(20))
    for layer in found:
        torch.testing.assert_close(layer.heads, torch.tensor([0.0, 0, 1, 0]))
        torch.testing.assert_close(layer.columns.sum(), torch.tensor(1.0))
        assert set(layer.columns.nonzero().reshape(-1).tolist()) <= {5, 11}
    kept = most_important(found, heads=1, columns=2)
    assert [each.heads.tolist() for each in kept] == [[2], [2]]
    before = student(ids, mask).exits[-1]
    torch.testing.assert_close(sliced(student, kept)(ids, mask).exits[-1], before, rtol=1e-5, atol=1e-6)
    assert lost(found, kept) == (0.0, 0.0)


def test_importance_is_the_loss_s_slope_along_a_part(student: EncoderStudent, ids: Tensor, mask: Tensor):
    """A column's importance on one text: the slope of the loss as its output is scaled around 1."""
    rows = np.array([7])
    loss = loss_of(student, ids, mask)
    student.double()
    found = importance(student, loss, [rows])[1].columns
    slopes = []
    for column in range(24):
        weight = student.layers[1].down.weight.data
        kept = weight[:, column].clone()
        values = []
        for scale in (1 + 1e-5, 1 - 1e-5):
            weight[:, column] = kept * scale
            values.append(loss(rows).item())
        weight[:, column] = kept
        slopes.append(abs(values[0] - values[1]))
    wanted = torch.tensor(slopes) / sum(slopes)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_batches_do_not_matter(student: EncoderStudent, ids: Tensor, mask: Tensor):
    loss = loss_of(student, ids, mask)
    one, several = (
        importance(student, loss, [np.arange(20)]),
        importance(student, loss, np.array_split(np.arange(20), 7)),
    )
    for a, b in zip(one, several, strict=True):
        torch.testing.assert_close(a.heads, b.heads, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-4, atol=1e-6)


def test_importance_needs_rows(student: EncoderStudent, ids: Tensor, mask: Tensor):
    with pytest.raises(ValueError, match="at least one row"):
        importance(student, loss_of(student, ids, mask), [])


def test_a_layer_without_effect_has_no_importance(student: EncoderStudent, ids: Tensor, mask: Tensor):
    masked(student, (), ())
    for layer in importance(student, loss_of(student, ids, mask), both(20)):
        assert not layer.heads.any()
        assert not layer.columns.any()


def test_equals_go_from_the_end_and_what_is_lost_is_said():
    found = [Importance(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.1, 0.1, 0.4, 0.4]))] * 2
    kept = most_important(found, heads=2, columns=3)
    assert kept[0].heads.tolist() == [0, 1]
    assert kept[0].columns.tolist() == [0, 2, 3]
    assert lost(found, kept) == pytest.approx((0.25, 0.1))
