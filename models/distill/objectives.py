"""The objectives: what makes a student's outputs, states and attention like its teacher's. All per item."""

import torch
from torch import Tensor, nn

# B items, T tokens, C labels, H hidden of the student, D hidden of the teacher


def softened_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of softened labels, times temperature squared.

    Args:
        student: float32 [B, C], raw logits.
        teacher: float32 [B, C], raw logits, no gradient.
        temperature: > 0, dimensionless; 1 changes nothing.
    Returns: float32 [B], nats.
    Raises: ValueError: `temperature` is not positive.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive")
    ours = torch.log_softmax(student / temperature, dim=-1)
    theirs = torch.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits, each item's less their mean (softmax does not see it).

    Args:
        student: float32 [B, C].
        teacher: float32 [B, C], no gradient.
    Returns: float32 [B].
    Source: Ba & Caruana 2014, arXiv:1312.6184; Tang et al. 2019, arXiv:1903.12136, section 3.2.
    """
    ours, theirs = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    return (ours - theirs).square().mean(-1)


def gold_cross_entropy(student: Tensor, gold: Tensor) -> Tensor:
    """Cross-entropy with the gold labels, 0 where there is none.

    Args:
        student: float32 [B, C], raw logits.
        gold: int64 [B], label indices, -1 for none.
    Returns: float32 [B], nats.
    """
    return nn.functional.cross_entropy(student, gold, ignore_index=-1, reduction="none")


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of token states, over tokens and width.

    Args:
        student: float32 [B, T, D], already projected to the teacher's width.
        teacher: float32 [B, T, D], no gradient.
        mask: float32 [B, T], 1 on tokens.
    Returns: float32 [B].
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, equation 8.
    """
    return ((student - teacher).square().mean(-1) * mask).sum(1) / mask.sum(1)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) of each token's attention, averaged over heads first, so that their numbers may differ.

    Args:
        student: float32 [B, heads, T, T], rows summing to 1.
        teacher: float32 [B, heads', T, T], the same, no gradient.
        mask: float32 [B, T], 1 on tokens.
    Returns: float32 [B], nats, mean over the item's tokens.
    Source: Wang et al. 2020 (MiniLM), arXiv:2002.10957, section 3.1, there head by head.
    """
    floor = 1e-9
    ours, theirs = student.mean(1).clamp_min(floor).log(), teacher.mean(1)
    divergence = (theirs * (theirs.clamp_min(floor).log() - ours)).sum(-1)
    return (divergence * mask).sum(1) / mask.sum(1)
