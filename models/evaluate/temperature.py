"""Temperatures of the exits, fitted on split A.

N rows, C labels. An inner exit is fitted to the full-depth label, since its confidence stands for agreement with
full depth; the last exit to the gold labels where there are any (else 1), since its score is read as a probability
of being right. The scores of inner exits are read so too: they have a temperature of their own, fitted to gold.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BOUNDS = (0.05, 20.0)


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.integer] | NDArray[np.floating]) -> float:
    """The temperature of least mean cross-entropy, between 0.05 and 20.

    Args:
        logits: [N, C], raw, finite.
        targets: int [N], labels; or float [N, C], a distribution a row.
    Raises: ValueError: no rows.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    if not len(logits):
        raise ValueError("a temperature needs at least one row")
    raw = np.asarray(logits, dtype=np.float64)
    soft = targets if targets.ndim == 2 else np.eye(raw.shape[1])[targets]

    def loss(log_temperature: float) -> float:
        return -float((soft * log_softmax(raw / np.exp(log_temperature), axis=1)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(found.x)), 6)


def fit_temperatures(
    logits: Sequence[NDArray[np.floating]], *, gold: NDArray[np.integer] | None = None
) -> tuple[float, ...]:
    """One temperature per exit, in pipeline order.

    Args:
        logits: one [N, C] per exit, of the same rows of split A; the last is full depth.
        gold: int [N], the true labels of those rows; -1 where a row has none.
    """
    reference = np.asarray(logits[-1]).argmax(axis=1)
    inner = tuple(fit_temperature(each, reference) for each in logits[:-1])
    return (*inner, _to_gold(logits[-1], gold) or 1.0)


def fit_score_temperatures(
    logits: Sequence[NDArray[np.floating]], *, gold: NDArray[np.integer] | None = None
) -> tuple[float | None, ...]:
    """The temperature of each exit's scores, in pipeline order: None where that of its confidences serves, which is so
    at the last exit, and everywhere without gold labels.

    Args: as `fit_temperatures` takes them.
    """
    return (*(_to_gold(each, gold) for each in logits[:-1]), None)


def _to_gold(logits: NDArray[np.floating], gold: NDArray[np.integer] | None) -> float | None:
    labelled = np.zeros(0, dtype=np.int64) if gold is None else np.flatnonzero(gold >= 0)
    return None if gold is None or not len(labelled) else fit_temperature(np.asarray(logits)[labelled], gold[labelled])
