"""Each objective against numbers worked out by hand, and its smallest value."""

import math

import pytest
import torch

from models.distill.objectives import attention_kl, gold_cross_entropy, hidden_mse, logit_mse, softened_kl


def test_softened_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert softened_kl(student, teacher, temperature=1).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_kl_is_nothing_for_equal_answers_and_positive_otherwise(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    same = softened_kl(teacher + 3, teacher, temperature=temperature)
    torch.testing.assert_close(same, torch.zeros(6), atol=1e-5, rtol=0)
    assert (softened_kl(student, teacher, temperature=temperature) > 0).all()


def test_softened_kl_of_a_high_temperature_is_half_the_mse_over_the_labels():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    high = softened_kl(student, teacher, temperature=1e4)
    torch.testing.assert_close(high, logit_mse(student, teacher) / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="not positive"):
        softened_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


def test_logit_mse_does_not_see_a_shift():
    teacher = torch.tensor([[1.0, 2.0, 3.0]])
    assert logit_mse(teacher + 7, teacher).item() == pytest.approx(0, abs=1e-10)
    assert logit_mse(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item() == pytest.approx(1)


def test_gold_cross_entropy_is_nothing_without_a_label():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert gold_cross_entropy(logits, torch.tensor([1, -1])).tolist() == pytest.approx([math.log(2), 0.0])


def test_hidden_mse_looks_at_tokens_only():
    student, teacher = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    teacher[0, 2] = 100
    assert hidden_mse(student, teacher, torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(1)


def test_attention_kl_compares_the_mean_over_heads():
    ours = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
    theirs = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]])
    mask = torch.ones(1, 2)
    assert attention_kl(ours, theirs, mask).item() == pytest.approx(0, abs=1e-6)
    other = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    assert attention_kl(ours, other, mask).item() == pytest.approx(math.log(2) / 2, rel=1e-5)
    assert attention_kl(ours, other, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(0, abs=1e-6)
