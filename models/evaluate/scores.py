"""What a student's exits say about rows: the raw outputs, and what calibration and quality read from them.

N rows, E exits (the last is full depth), C labels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.evaluate.exits import Counts, ExitRows
from service.bundle.manifest import Confidence
from service.runtime.encode import Encoded
from service.runtime.heads import confidence, softmax
from service.runtime.student import Student, batches_by_length

Logits = NDArray[np.float32]

BATCH_ITEMS = 64


def exit_logits(student: Student, encoded: Sequence[Encoded], *, batch_items: int = BATCH_ITEMS) -> tuple[Logits, ...]:
    """Run rows to full depth on the exported graphs.

    Returns: for each exit, in pipeline order, its raw logits float32 [N, C], in the order of `encoded`.
    Raises: ValueError: there are no rows.
    """
    if not encoded:
        raise ValueError("no rows to run")
    order: list[int] = []
    parts = []
    for batch in batches_by_length(encoded, batch_items):
        order += batch
        parts.append(student.all_exits([encoded[i] for i in batch]))
    back = np.argsort(np.asarray(order))
    return tuple(np.concatenate(outputs)[back] for outputs in zip(*parts, strict=True))


def exit_rows(logits: Sequence[Logits], *, temperatures: Sequence[float], rule: Confidence) -> ExitRows:
    """The confidences of the inner exits and the labels of all, by the service's own functions."""
    inner = [
        confidence(softmax(each, temperature=temperature), rule)
        for each, temperature in zip(logits[:-1], temperatures[:-1], strict=True)
    ]
    rows = len(logits[0])
    confidences = np.stack(inner, axis=1) if inner else np.zeros((rows, 0))
    return ExitRows(confidences.astype(np.float64), labels_of(logits))


def labels_of(logits: Sequence[Logits]) -> Counts:
    """int64 [N, E], the label each exit would answer."""
    return np.stack([each.argmax(axis=1) for each in logits], axis=1).astype(np.int64)
