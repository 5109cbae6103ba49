"""What the surfaces share: errors that name the surface's own fields."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.api.surface import outcomes, renamed
from service.errors import DeadlineExceeded, FieldProblem, InvalidInput, RunFailed
from service.runtime.student import Outcome

GOOD = Outcome(exit_index=0, raw=np.zeros(2, np.float32))


def _inference(*ends: Any) -> Any:
    return SimpleNamespace(items=tuple(SimpleNamespace(end=end) for end in ends))


def test_outcomes_in_order() -> None:
    assert outcomes(_inference(GOOD, GOOD), field="/input") == [GOOD, GOOD]


def test_a_failed_item_is_named() -> None:
    with pytest.raises(RunFailed) as error:
        outcomes(_inference(GOOD, RunFailed("it broke")), field="/input")
    assert error.value.errors == (FieldProblem("/input/1", "it broke"),)


def test_what_is_not_an_items_fault_is_told_as_it_is() -> None:
    late = DeadlineExceeded("too late")
    with pytest.raises(DeadlineExceeded) as error:
        outcomes(_inference(GOOD, late), field="/input")
    assert error.value is late


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [("/inputs", "/input"), ("/inputs/3", "/input/3"), ("/inputsmore", "/inputsmore"), ("/model", "/model"), ("", "")],
)
def test_fields_are_renamed(pointer: str, expected: str) -> None:
    error = renamed(InvalidInput("wrong", errors=(FieldProblem(pointer, "why"),)), "/inputs", "/input")
    assert isinstance(error, InvalidInput)
    assert (error.detail, error.errors) == ("wrong", (FieldProblem(expected, "why"),))
