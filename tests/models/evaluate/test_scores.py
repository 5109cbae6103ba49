"""Exit outputs come back in the rows' order and mean what the service says they mean."""

import numpy as np
import pytest

from models.evaluate.exits import exit_taken
from models.evaluate.scores import exit_logits, exit_rows, labels_of
from service.runtime.student import Student


def test_rows_keep_their_order_whatever_the_batches(student: Student, texts: tuple[str, ...]) -> None:
    encoded = student.encoder.encode(texts)
    together = exit_logits(student, encoded)
    for index in (0, 57, 199):
        for logits, alone in zip(together, student.all_exits([encoded[index]]), strict=True):
            assert logits[index] == pytest.approx(alone[0], abs=1e-5)
    small = exit_logits(student, encoded, batch_items=7)
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(together, small, strict=True))


@pytest.mark.parametrize("risk", [0.01, 0.05])
def test_exits_taken_are_those_of_the_service(student: Student, texts: tuple[str, ...], risk: float) -> None:
    encoded = student.encoder.encode(texts)
    policy = student.policy(risk)
    temperatures = [leave.temperature for leave in student.manifest.exits]
    rows = exit_rows(exit_logits(student, encoded), temperatures=temperatures, rule=policy.confidence)
    outcomes = student.run(encoded, policy)
    taken = exit_taken(rows, policy.thresholds)
    assert taken.tolist() == [outcome.exit_index for outcome in outcomes]
    assert len(set(taken.tolist())) == 2
    answered = rows.labels[np.arange(rows.rows), taken]
    assert answered.tolist() == [int(outcome.raw.argmax()) for outcome in outcomes]


def test_labels_are_the_largest_logits() -> None:
    logits = [
        np.array([[1.0, 2.0], [3.0, 0.0]], dtype=np.float32),
        np.array([[5.0, 2.0], [0.0, 9.0]], dtype=np.float32),
    ]
    assert labels_of(logits).tolist() == [[1, 0], [0, 1]]


def test_one_exit_has_no_inner_confidences() -> None:
    rows = exit_rows([np.zeros((4, 2), dtype=np.float32)], temperatures=[1.0], rule="max_probability")
    assert rows.confidences.shape == (4, 0)


def test_no_rows_are_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="no rows"):
        exit_logits(student, [])
