"""What requests say in headers: priority and deadline."""

import pytest

from service.api.access import Caller
from service.api.call import Call, call_of
from service.api.conversation import Exchange
from service.errors import InvalidInput
from service.settings import load_settings


def _call(deadline_ms: float | None = None, default_ms: float | None = None, **headers: str) -> Call:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    exchange = Exchange(b"id", named, Caller("web"))
    return call_of(exchange, 100.0, deadline_ms, load_settings(slots=1, default_deadline_ms=default_ms))


def test_nothing_said() -> None:
    assert _call() == Call(None, "normal", Caller("web"))


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_priorities(priority: str) -> None:
    assert _call(x_priority=priority).priority == priority
    assert _call(x_priority=f" {priority.upper()} ").priority == priority


@pytest.mark.parametrize("priority", ["", "urgent", "1", "high,low"])
def test_an_unknown_priority(priority: str) -> None:
    with pytest.raises(InvalidInput, match="x-priority"):
        _call(x_priority=priority)


def test_the_body_comes_before_the_header_and_that_before_the_setting() -> None:
    assert _call(50, 2000, x_request_deadline_ms="1000").deadline == 100.05
    assert _call(None, 2000, x_request_deadline_ms="1000").deadline == 101
    assert _call(None, 2000).deadline == 102


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e99", "3600001"])
def test_a_deadline_that_is_none(value: str) -> None:
    with pytest.raises(InvalidInput, match="x-request-deadline-ms"):
        _call(x_request_deadline_ms=value)
